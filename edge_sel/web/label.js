"use strict";
// No framework, no request to anywhere else. Every text from the server goes in as text, never as markup.
const by = (id) => document.getElementById(id);
let shown = null, busy = false;

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
  };
  let answer, state;
  try {
    answer = await fetch(path, options);
    state = await answer.json();
  } catch (error) {
    throw new Error("The device does not answer. Is it still on?");
  }
  if (!answer.ok) throw new Error(state.error || "That did not work.");
  return state;
}

async function work(path, body) {
  if (busy) return;
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  by("message").textContent = "";
  try {
    show(await ask(path, body));
  } catch (error) {
    by("message").textContent = error.message;
  }
  busy = false;
  document.body.removeAttribute("aria-busy");
}

const say = (name) => shown && work("/api/label", {image: shown.number, name: name});

function show(state) {
  shown = state.image;
  by("progress").max = Math.max(state.kept, 1);
  by("progress").value = state.labelled;
  by("count").textContent = `${state.labelled} of ${state.kept} have a label`;
  by("verdict").textContent = `${state.verdict} (model ${state.model} is in service)`;
  const picture = by("picture");
  if (shown) {
    picture.hidden = false;
    picture.src = `/image/${shown.number}`;
    const sure = Math.round(100 * shown.probability);
    picture.alt = `Image ${shown.number}. The model says ${shown.guess}, ${sure} percent.`;
    const fresh = shown.novelty > 1 ? "new" : shown.novelty > 0.6 ? "unusual" : "familiar";
    by("guess").textContent = `The model says ${shown.guess}, ${sure} %. To it, this is ${fresh}.`;
    by("question").textContent = "What does this show?";
  } else {
    picture.hidden = true;
    picture.removeAttribute("src");
    by("guess").textContent = "";
    by("question").textContent = state.kept ? "Nothing is left to ask." : "No image was kept yet.";
  }
  showClasses(state.classes);
  showDisputed(state.disputed);
  showCurve(state.curve);
  for (const id of ["none", "skip"]) by(id).disabled = !shown;
}

// A class whose name is one letter or digit has that key; the others take the digits that are left.
function keysOf(names) {
  const own = (name) => /^[0-9a-z]$/i.test(name) && !"nsu".includes(name.toLowerCase()) ? name.toLowerCase() : "";
  const taken = names.map(own).map((key, place, all) => all.indexOf(key) === place ? key : "");
  const left = [..."123456789"].filter((digit) => !taken.includes(digit));
  return taken.map((key) => key || left.shift() || "");
}

function showClasses(names) {
  const keys = keysOf(names);
  const had = document.activeElement && document.activeElement.parentElement === by("classes");
  by("classes").replaceChildren(...names.map((name, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.disabled = !shown;
    button.append(name);
    if (keys[place]) button.setAttribute("aria-keyshortcuts", keys[place]);
    if (keys[place] && keys[place] !== name.toLowerCase()) {
      const key = document.createElement("kbd");
      key.textContent = ` ${keys[place]}`;
      button.append(key);
    }
    button.setAttribute("aria-pressed", String(Boolean(shown) && name === shown.guess));
    button.addEventListener("click", () => say(name));
    return button;
  }));
  if (had || document.activeElement === document.body) {
    const guess = by("classes").querySelector('[aria-pressed="true"]');
    if (guess) guess.focus({preventScroll: true});
  }
}

function showDisputed(numbers) {
  const place = by("disputed");
  place.replaceChildren();
  if (!numbers.length) return;
  place.append("People disagree about ");
  numbers.slice(0, 20).forEach((number, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `image ${number}`;
    button.addEventListener("click", () => work(`/api/next?image=${number}`));
    place.append(at ? " " : "", button);
  });
}

function showCurve(fits) {
  const curve = by("curve"), make = (kind, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text) node.textContent = text;
    return node;
  };
  curve.replaceChildren();
  const known = fits.filter((fit) => fit[2] > 0);
  if (known.length < 2) {
    curve.setAttribute("aria-label", "Too few labels for a curve");
    return;
  }
  const most = known[known.length - 1][0], least = known[0][0], last = known[known.length - 1];
  const x = (labels) => 34 + 256 * (labels - least) / Math.max(most - least, 1), y = (share) => 75 - 65 * share;
  for (const share of [0, 0.5, 1]) {
    curve.append(make("line", {x1: 34, x2: 290, y1: y(share), y2: y(share)}));
    curve.append(make("text", {x: 28, y: y(share) + 3, "text-anchor": "end"}, `${100 * share} %`));
  }
  curve.append(make("text", {x: 34, y: 87}, `${least} labels`));
  curve.append(make("text", {x: 290, y: 87, "text-anchor": "end"}, String(most)));
  curve.append(make("polyline", {points: known.map((fit) => `${x(fit[0])},${y(fit[1] / fit[2])}`).join(" ")}));
  const now = Math.round(100 * last[1] / last[2]);
  curve.setAttribute("aria-label", `Labelled images that are right when left out: ${now} percent after ${most} labels`);
}

by("other").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = by("name").value.trim();
  if (!name) return;
  by("name").value = "";
  by("name").blur();
  say(name);
});
by("none").addEventListener("click", () => say(null));
by("skip").addEventListener("click", () => shown && work("/api/skip", {image: shown.number}));
by("undo").addEventListener("click", () => work("/api/undo", {}));
document.addEventListener("keydown", (event) => {
  if (event.target === by("name") || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase();
  const button = [...by("classes").children].find((one) => one.getAttribute("aria-keyshortcuts") === key);
  if (button) button.click();
  else if (key === "n") by("none").click();
  else if (key === "s") by("skip").click();
  else if (key === "u") by("undo").click();
});
work("/api/refresh", {});
