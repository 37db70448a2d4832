// Titles come from data: they are only ever set as textContent.
"use strict";

const K = 10;
const SETTLE = 150; // milliseconds without a key before a search is sent
const byId = (name) => document.getElementById(name);
let history = []; // {item, title}, oldest first
let token = "";
let turn = 0; // of the last question about recommendations; an answer to an earlier one is not shown
let searches = 0;
let device = null; // the model on this device, once it was asked for
let fresh = false; // its layers are of the history as it was when they came, to which events were added at most

async function ask(address, body) {
  return (await fetched(address, body)).json();
}

async function fetched(address, body) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const options = { headers };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["content-type"] = "application/json";
  }
  const answer = await fetch(address, options);
  if (answer.status === 401) {
    byId("entry").hidden = false;
    byId("token").focus();
  }
  if (!answer.ok) throw new Error((await answer.json()).detail);
  byId("problem").hidden = true;
  return answer;
}

function fail(error) {
  byId("problem").textContent = error instanceof TypeError ? "The service does not answer." : error.message;
  byId("problem").hidden = false;
}

function say(sentence) {
  byId("status").textContent = sentence;
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function row(title, label, act, ...notes) {
  const made = element("li");
  made.append(element("span", "title", title));
  const button = element("button", "", label);
  button.type = "button";
  button.setAttribute("aria-label", `${label} ${title}`);
  button.addEventListener("click", act);
  made.append(button);
  for (const note of notes.filter(Boolean)) made.append(element("span", "note", note));
  return made;
}

function kind(semantic) {
  return semantic && `semantic ${semantic.semantic}, as ${semantic.typical.join(" · ")}`;
}

function showHistory(seen) {
  byId("history").replaceChildren(
    ...seen.map((entry, place) => {
      const made = row(entry.title, "Remove", () => remove(place), kind(entry.semantic));
      if (!entry.read) {
        made.classList.add("unread");
        made.append(element("span", "note", "too long ago for the model to read"));
      }
      return made;
    }),
  );
  byId("empty").hidden = seen.length > 0;
  byId("clear").hidden = seen.length === 0;
}

function parts(entry) {
  const given = Object.entries(entry.reason.parts).sort((one, other) => Math.abs(other[1]) - Math.abs(one[1]));
  return given.length > 1 && `${entry.score.toFixed(2)} = ${given.map(([name, value]) => `${name} ${value.toFixed(2)}`).join(" + ")}`;
}

function showRecommended(items) {
  byId("recommended").replaceChildren(
    ...items.map((entry) => {
      const notes = entry.reason ? [entry.reason.text, parts(entry)] : [entry.score.toFixed(4)];
      return row(entry.title, "Add", () => add(entry), ...notes);
    }),
  );
}

async function refresh(said) {
  const mine = ++turn;
  byId("recommended").setAttribute("aria-busy", "true");
  showHistory(history.map((entry) => ({ ...entry, read: true }))); // at once; what is known of it comes with the answer
  try {
    const answer = byId("device").checked ? await rankedHere() : await rankedThere();
    if (mine !== turn) return;
    showHistory(answer.history);
    showRecommended(answer.items);
    byId("model").textContent = `model ${answer.model}`;
    say(`${said} ${answer.items.length} recommendations.`);
  } catch (error) {
    if (mine === turn) fail(error);
  } finally {
    if (mine === turn) byId("recommended").removeAttribute("aria-busy");
  }
}

function rankedThere() {
  return ask("recommend", { history: history.map((entry) => entry.item), k: K, reasons: true, unknown: "ignore" });
}

// By the model on this device. Its layers come from the service where the history is another one; what was added since
// is observed here, and nobody hears of it.
async function rankedHere() {
  if (!device) {
    const [part, named] = await Promise.all([fetched("device/static"), ask("device/items")]);
    const content = await part.arrayBuffer();
    device = { model: new DeviceModel(content, named), bytes: content.byteLength, blob: 0, added: 0 };
  }
  if (!fresh) {
    const asked = { history: history.map((entry) => entry.item), unknown: "ignore" };
    const blob = await (await fetched("device/personal", asked)).arrayBuffer();
    try {
      device.model.load(blob);
    } catch (error) {
      device = null; // the service has another model now, which the next question fetches
      throw error;
    }
    Object.assign(device, { blob: blob.byteLength, added: 0 });
    fresh = true;
  }
  const { model, bytes, blob, added } = device;
  const since = added ? `, layers made ${added} ${added === 1 ? "event" : "events"} ago` : "";
  byId("sent").textContent = `${bytes.toLocaleString("en")} bytes for everybody, ${blob.toLocaleString("en")} for you${since}`;
  byId("renew").hidden = !added;
  const read = history.length - model.about.length;
  const seen = history.map((entry, place) => ({ ...entry, read: place >= read }));
  return { history: seen, items: model.recommend(K), model: `${model.version.slice(0, 12)} on this device` };
}

function add(entry) {
  const focused = document.activeElement;
  history = [...history, { item: entry.item, title: entry.title }];
  if (byId("device").checked && device && fresh) {
    device.model.observe(entry.item);
    device.added += 1;
  } else fresh = false;
  refresh(`Added ${entry.title}.`).then(() => keepFocus(focused, byId("recommended")));
}

function remove(place) {
  const title = history[place].title;
  history = history.filter((_, other) => other !== place);
  fresh = false;
  refresh(`Removed ${title}.`).then(() => {
    const buttons = byId("history").querySelectorAll("button");
    (buttons[Math.min(place, buttons.length - 1)] ?? byId("history-title")).focus();
  });
}

// A list that was drawn anew has lost the button that was pressed: whoever uses the keyboard goes on in the same list.
function keepFocus(before, list) {
  if (before && before !== document.body && !before.isConnected) (list.querySelector("button") ?? list).focus();
}

async function search() {
  const mine = ++searches;
  const query = byId("query").value.trim();
  try {
    const found = (await ask(`items?limit=12&query=${encodeURIComponent(query)}`)).items;
    if (mine !== searches) return;
    byId("found-title").textContent = !query ? "Most popular" : found.length ? "Found" : "No title has this in it";
    byId("found").replaceChildren(...found.map((entry) => row(entry.title, "Add", () => add(entry))));
    if (query) say(`${found.length} titles found.`);
  } catch (error) {
    if (mine === searches) fail(error);
  }
}

async function begin() {
  try {
    const { examples } = await ask("examples");
    const choice = byId("example");
    choice.replaceChildren(choice.options[0]);
    for (const [place, example] of examples.entries()) {
      const titles = example.history.map((entry) => entry.title);
      const option = element("option", "", `${example.name}: ${titles.join(" · ")}`.slice(0, 100));
      option.value = String(place);
      choice.append(option);
    }
    choice.onchange = () => {
      if (choice.value === "") return;
      history = examples[Number(choice.value)].history;
      fresh = false;
      refresh("An example's history.");
    };
    await Promise.all([search(), refresh("")]);
  } catch (error) {
    fail(error);
  }
}

byId("device").addEventListener("change", () => {
  const here = byId("device").checked;
  fresh = false;
  byId("sent").hidden = !here;
  byId("renew").hidden = true;
  refresh(here ? "On this device." : "On the service.");
});
byId("renew").addEventListener("click", () => {
  fresh = false;
  byId("device").focus();
  refresh("The layers are new.");
});

let settling;
byId("query").addEventListener("input", () => {
  clearTimeout(settling);
  settling = setTimeout(search, SETTLE);
});
byId("clear").addEventListener("click", () => {
  history = [];
  fresh = false;
  byId("example").value = "";
  byId("history-title").focus();
  refresh("The history is empty.");
});
byId("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value;
  byId("entry").hidden = true;
  begin();
});
begin();
