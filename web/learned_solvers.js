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

// The next count in the direction of the change, or the last one that there is.
function stepped(counts, wanted, before) {
  if (wanted > before) return counts.find((n) => n >= wanted) ?? counts.at(-1);
  return counts.findLast((n) => n <= wanted) ?? counts[0];
}

function keepToCounts(node) {
  const solver = node.widgets?.find((w) => w.name === "solver");
  const steps = node.widgets?.find((w) => w.name === "steps");
  if (!solver || !steps) return;
  const lowest = steps.options.min; // 0 where the node can do without a count
  let counts = [];
  let before = steps.value;

  const settle = () => {
    if (counts.length && !(lowest === 0 && steps.value === 0)) steps.value = stepped(counts, steps.value, before);
    before = steps.value;
  };
  const follow = async () => {
    const chosen = () => (node.inputs?.find((input) => input.name === "solver")?.link != null ? "auto" : solver.value);
    const asked = chosen();
    const found = asked === "auto" ? [] : await countsOf(asked); // auto or wired: only the run will tell the file
    if (chosen() !== asked) return;
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
  const connected = node.onConnectionsChange;
  node.onConnectionsChange = function (...args) {
    connected?.apply(this, args);
    follow();
  };
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
