// The steps widget keeps to the counts that the chosen solver file has, and names them. To the API steps stays an INT.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NODES = ["LearnedSolver", "LearnedSolverKSampler", "SetLearnedSolver", "LearnedSolverInfo"];

async function countsOf(solver) {
  try {
    const answer = await api.fetchApi(`/learned_solvers/steps?solver=${encodeURIComponent(solver)}`);
    return answer.ok ? (await answer.json()).steps : [];
  } catch {
    return []; // an unreachable server: any number may be typed, and is checked when the prompt runs
  }
}

function nearest(counts, wanted, before) {
  const free = counts.includes(wanted) ? [wanted] : counts.filter((n) => (wanted > before ? n > wanted : n < wanted));
  return free.length ? (wanted > before ? Math.min(...free) : Math.max(...free)) : wanted > before ? Math.max(...counts) : Math.min(...counts);
}

function keepToCounts(node) {
  const solver = node.widgets?.find((w) => w.name === "solver");
  const steps = node.widgets?.find((w) => w.name === "steps");
  if (!solver || !steps) return;
  const lowest = steps.options.min; // 0 where the node can do without a count
  let counts = [];
  let before = steps.value;

  const settle = () => {
    if (counts.length && !(lowest === 0 && steps.value === 0)) steps.value = nearest(counts, steps.value, before);
    before = steps.value;
  };
  const follow = async () => {
    const asked = solver.value;
    const found = await countsOf(asked); // "auto" is no file: every count may be asked for
    if (solver.value !== asked) return;
    counts = found.length && lowest === 0 ? [0, ...found] : found;
    steps.label = found.length ? `steps (${found.join(", ")})` : undefined;
    settle();
    node.setDirtyCanvas?.(true, true);
  };
  const after = (widget, act) => {
    const own = widget.callback;
    widget.callback = function (...args) {
      const result = own?.apply(this, args);
      act();
      return result;
    };
  };
  after(solver, follow);
  after(steps, settle);
  const configured = node.onConfigure;
  node.onConfigure = function (...args) {
    configured?.apply(this, args);
    before = steps.value;
    follow();
  };
  follow();
}

app.registerExtension({
  name: "learned_solvers.steps",
  nodeCreated(node) {
    if (NODES.includes(node.comfyClass)) keepToCounts(node);
  },
});
