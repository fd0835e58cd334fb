// The steps widget keeps to the counts that the chosen solver file has, and names them. To the API steps stays an INT.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NODES = ["LearnedSolver", "LearnedSolverKSampler", "SetLearnedSolver", "LearnedSolverInfo"];
const OURS = /^steps \(\d+(, \d+)*\)$/; // a label that is not the user's
const ASK = Symbol("learned_solvers.ask");

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
  const unnamed = steps.label; // the host's own
  let counts = [];
  let before = steps.value;
  let chosenBefore = solver.value;

  // A value changes only where the user changes one: a saved workflow stays as it is.
  const settle = () => {
    if (counts.length && !(lowest === 0 && steps.value === 0)) steps.value = stepped(counts, steps.value, before);
    before = steps.value;
  };
  const chosen = () => (node.inputs?.find((input) => input.name === "solver")?.link != null ? "auto" : solver.value);
  const ask = async () => {
    const asked = chosen();
    const found = asked === "auto" ? [] : await countsOf(asked); // auto or wired: only the run will tell the file
    if (chosen() !== asked) return false;
    counts = found.length && lowest === 0 ? [0, ...found] : found;
    if (!steps.label || steps.label === unnamed || OURS.test(steps.label))
      steps.label = found.length ? `steps (${found.join(", ")})` : unnamed;
    node.setDirtyCanvas?.(true, true);
    return true;
  };
  const after = (object, name, act) => {
    const own = object[name];
    object[name] = function (...args) {
      const result = own?.apply(this, args);
      act();
      return result;
    };
  };
  after(solver, "callback", async () => {
    const other = solver.value !== chosenBefore;
    chosenBefore = solver.value;
    if ((await ask()) && other) settle();
  });
  after(steps, "callback", () => {
    if (steps.value !== before) settle();
  });
  after(node, "onConnectionsChange", ask);
  after(node, "onConfigure", () => {
    before = steps.value;
    chosenBefore = solver.value;
    ask();
  });
  node[ASK] = ask;
  ask();
}

// A file may have been fitted again under its name, with other counts.
function askAgain() {
  const root = app.graph?.rootGraph ?? app.graph;
  for (const graph of [root, ...(root?.subgraphs?.values() ?? [])]) for (const node of graph?._nodes ?? []) node[ASK]?.();
}

api.addEventListener("execution_success", askAgain);

app.registerExtension({
  name: "learned_solvers.steps",
  nodeCreated(node) {
    if (NODES.includes(node.comfyClass)) keepToCounts(node);
  },
  refreshComboInNodes: askAgain,
});
