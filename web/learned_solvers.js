// Limits the steps widget to the step counts of the chosen solver file and lists them in its label; the API still
// accepts any INT. Adds "Fit a solver for this model" to the menus of sampler nodes, and shows reports as Markdown.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NODES = ["LearnedSolver", "LearnedSolverKSampler", "SetLearnedSolver", "LearnedSolverInfo"];
const SAMPLERS = ["KSampler", "LearnedSolverKSampler"];
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

// Adds a Fit node next to a sampler node, wired to the same model, conditioning and latent, with its step count.
const FITTED_INPUTS = { model: "model", positive: "positive", negative: "negative", latent_image: "latent" };

function addFitNode(sampler) {
  const fit = LiteGraph.createNode("FitLearnedSolver");
  const bottom = Math.max(...sampler.graph._nodes.map((node) => node.pos[1] + node.size[1]));
  fit.pos = [sampler.pos[0], bottom + 60];
  sampler.graph.add(fit);
  for (const [from, to] of Object.entries(FITTED_INPUTS)) {
    const input = sampler.findInputSlot(from);
    const source = input < 0 ? null : sampler.getInputNode(input);
    if (source) source.connect(sampler.getInputLink(input).origin_slot, fit, fit.findInputSlot(to));
  }
  for (const name of ["cfg", "steps"]) {
    const [from, to] = [sampler, fit].map((node) => node.widgets?.find((w) => w.name === name));
    // A fit of more steps takes long, and stock samplers are good enough there.
    if (from && to) to.value = name === "steps" ? String(Math.min(from.value, 8)) : from.value;
  }
  app.canvas.selectNode?.(fit);
  app.canvas.centerOnNode?.(fit);
  return fit;
}

// Seconds per step of the last run of each sampler node.
const secondsPerStep = new Map();
let lastStep = {};
api.addEventListener("progress", ({ detail: { node, value } }) => {
  const now = performance.now() / 1000;
  if (lastStep.node === node && value === lastStep.value + 1) secondsPerStep.set(String(node), now - lastStep.time);
  lastStep = { node, value, time: now };
});

async function fitSolver(sampler) {
  const fit = addFitNode(sampler);
  const steps = fit.widgets.find((w) => w.name === "steps").value;
  // Nodes of a subgraph report their progress under another number.
  const seconds = (sampler.graph === (app.graph.rootGraph ?? app.graph) && secondsPerStep.get(String(sampler.id))) || 0;
  const query = new URLSearchParams({ steps, seconds });
  const answer = await api.fetchApi(`/learned_solvers/fit_cost?${query}`).catch(() => null);
  if (!answer?.ok) return;
  const { cost } = await answer.json();
  app.extensionManager?.toast?.add({
    severity: "info",
    summary: "Fit Learned Solver",
    detail: `Usually ${cost}.${seconds ? "" : " Run the sampler once to estimate the minutes."}`,
    life: 15000,
  });
}

// The page does not save a text node's mode; reports and tables are Markdown.
const MARKDOWN = { FitLearnedSolver: "report", CompareSamplers: "table" };

function showMarkdown(node) {
  for (const target of node.getOutputNodes(node.findOutputSlot(MARKDOWN[node.comfyClass])) ?? []) {
    const mode = target.widgets?.find((w) => w.name === "preview_mode");
    if (!mode) continue;
    mode.value = true;
    mode.callback?.(true);
  }
}

function offerFit(node) {
  const original = node.getExtraMenuOptions;
  node.getExtraMenuOptions = function (canvas, options) {
    const result = original?.apply(this, arguments);
    options.unshift({ content: "Fit a solver for this model", callback: () => fitSolver(this) }, null);
    return result;
  };
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
    if (SAMPLERS.includes(node.comfyClass)) offerFit(node);
  },
  loadedGraphNode(node) {
    if (node.comfyClass in MARKDOWN) showMarkdown(node);
  },
  refreshComboInNodes: refreshAll,
});
