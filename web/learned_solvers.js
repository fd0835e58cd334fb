// Limits the steps widget to the step counts of the chosen solver file and lists them in its label. The API still
// accepts any INT.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NODES = ["LearnedSolver", "LearnedSolverKSampler", "SetLearnedSolver", "LearnedSolverInfo"];
const GENERATED_LABEL = /^steps \(\d+(, \d+)*\)$/; // any other label is the user's
const REFRESH = Symbol("learned_solvers.refresh");

async function fetchCounts(solver) {
  try {
    const answer = await api.fetchApi(`/learned_solvers/steps?solver=${encodeURIComponent(solver)}`);
    return answer.ok ? (await answer.json()).steps : [];
  } catch {
    return []; // server unreachable: any number can be typed, and is validated when the prompt runs
  }
}

// The nearest count in the direction of the change, or the outermost one.
function snapToCount(counts, value, previous) {
  if (value > previous) return counts.find((n) => n >= value) ?? counts.at(-1);
  return counts.findLast((n) => n <= value) ?? counts[0];
}

function limitSteps(node) {
  const solver = node.widgets?.find((w) => w.name === "solver");
  const steps = node.widgets?.find((w) => w.name === "steps");
  if (!solver || !steps) return;
  const lowest = steps.options.min; // 0 where a node accepts "no count"
  const defaultLabel = steps.label; // the host's
  let counts = [];
  let previousSteps = steps.value;
  let previousSolver = solver.value;

  // Only a change by the user changes the value: a saved workflow stays as it is.
  const snap = () => {
    if (counts.length && !(lowest === 0 && steps.value === 0)) steps.value = snapToCount(counts, steps.value, previousSteps);
    previousSteps = steps.value;
  };
  const currentSolver = () =>
    node.inputs?.find((input) => input.name === "solver")?.link != null ? "auto" : solver.value;
  const refresh = async () => {
    const requested = currentSolver();
    const fetched = requested === "auto" ? [] : await fetchCounts(requested); // auto or connected: known only in a run
    if (currentSolver() !== requested) return false;
    counts = fetched.length && lowest === 0 ? [0, ...fetched] : fetched;
    if (!steps.label || steps.label === defaultLabel || GENERATED_LABEL.test(steps.label))
      steps.label = fetched.length ? `steps (${fetched.join(", ")})` : defaultLabel;
    node.setDirtyCanvas?.(true, true);
    return true;
  };
  const runAfter = (object, name, action) => {
    const original = object[name];
    object[name] = function (...args) {
      const result = original?.apply(this, args);
      action();
      return result;
    };
  };
  runAfter(solver, "callback", async () => {
    const changed = solver.value !== previousSolver;
    previousSolver = solver.value;
    if ((await refresh()) && changed) snap();
  });
  runAfter(steps, "callback", () => {
    if (steps.value !== previousSteps) snap();
  });
  runAfter(node, "onConnectionsChange", refresh);
  runAfter(node, "onConfigure", () => {
    previousSteps = steps.value;
    previousSolver = solver.value;
    refresh();
  });
  node[REFRESH] = refresh;
  refresh();
}

// A file may have been fitted again under its name, with other step counts.
function refreshAll() {
  const root = app.graph?.rootGraph ?? app.graph;
  for (const graph of [root, ...(root?.subgraphs?.values() ?? [])])
    for (const node of graph?._nodes ?? []) node[REFRESH]?.();
}

api.addEventListener("execution_success", refreshAll);

app.registerExtension({
  name: "learned_solvers.steps",
  nodeCreated(node) {
    if (NODES.includes(node.comfyClass)) limitSteps(node);
  },
  refreshComboInNodes: refreshAll,
});
