// The chat page. It joins the room, waits for messages by long polls, and sends what is written.
//
// Every text that comes from the room is put into the page as text, never as HTML.
"use strict";

// A poll is answered within the function's time limit; one that is not got lost on its way.
const POLL_LIMIT_MS = 60_000;
const CALL_LIMIT_MS = 15_000;
// How long to wait before the next try, longer after each that failed.
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 2_000;
// A room that has told nothing for so long is empty.
const EMPTY_AFTER_MS = 300;

const $ = (id) => document.getElementById(id);
const { title } = document;

let known;
/** The function's URL, from what `ol deploy` has written beside this page. */
async function place() {
  known ??= await findFunction();
  return known;
}

async function findFunction() {
  const served = location.protocol.startsWith("http");
  let config;
  if (served) {
    const answer = await fetch("config.json", { cache: "no-store" }).catch(() => null);
    config = answer?.ok && (await answer.json().catch(() => null));
  }
  // A page that is a file may read nothing but scripts.
  config ||= await run("config.js").then(() => window.OPENLAMBDA);
  if (!config?.url) {
    throw new Error("This page does not know its function: run `ol deploy` on the folder above it.");
  }
  const url = new URL(config.url);
  const own = ["127.0.0.1", "localhost", "[::1]"];
  // Seen from a phone, this machine is the one that the page came from.
  if (served && own.includes(url.hostname) && !own.includes(location.hostname)) {
    url.hostname = location.hostname;
  }
  return url;
}

/** Runs a script, also one that was run before and has changed; resolves if there is none, too. */
function run(source) {
  return new Promise((resolve) => {
    const script = document.createElement("script");
    script.src = source;
    script.onload = script.onerror = () => resolve(script.remove());
    document.head.append(script);
  });
}

/** Calls the function. The error's message is for people. */
async function ask(url, event, limit) {
  let answer, text;
  try {
    // Without a content type of its own the request needs no leave from the server beforehand.
    const init = { method: "POST", body: JSON.stringify(event), signal: AbortSignal.timeout(limit) };
    answer = await fetch(url, init);
    text = await answer.text();
  } catch {
    throw new Error(`The server at ${url.host} cannot be reached.`);
  }
  let reply;
  try {
    reply = JSON.parse(text);
  } catch {
    throw new Error(`The server at ${url.host} did not answer as a chat room does.`);
  }
  if (!answer.ok || reply.error) {
    throw new Error(`The chat room failed: ${reply.message ?? reply.error ?? answer.status}`);
  }
  return reply.result;
}

/** Resolves after the time, or when the network comes back. */
function pause(ms) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      removeEventListener("online", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    addEventListener("online", done);
  });
}

/** Shows messages for as long as the page is open, whatever happens to the server. */
async function follow() {
  // The newest message that is shown.
  let seen = 0;
  let joined = false;
  let failures = 0;
  for (;;) {
    try {
      const url = await place();
      if (!joined) {
        // Makes the room if there is none, and keeps what is in it.
        await ask(url, { op: "init", keep: true }, CALL_LIMIT_MS);
        joined = true;
        say($("status"), "");
        setTimeout(() => ($("empty").hidden = seen > 0), EMPTY_AFTER_MS);
      }
      const messages = await ask(url, { op: "updates", ts: seen }, POLL_LIMIT_MS);
      failures = 0;
      show(messages.filter((message) => message.ts > seen));
      seen = messages.reduce((newest, message) => Math.max(newest, message.ts), seen);
    } catch (error) {
      joined = false;
      // It may have been deployed elsewhere.
      known = undefined;
      say($("status"), `${error.message} Trying again…`);
      await pause(Math.min(FIRST_PAUSE_MS * 2 ** failures, LONGEST_PAUSE_MS));
      failures += 1;
    }
  }
}

/** What was said and the room does not have yet, the oldest first. */
let unsent = [];
let sending = false;

/** Sends what is in the box, after what was said before. */
async function send() {
  const box = $("text");
  const text = box.value.trim();
  if (!text) return;
  box.value = "";
  unsent.push({ text, name: $("name").value.trim() });
  if (sending) return;
  sending = true;
  try {
    while (unsent.length > 0) {
      const [{ text, name }] = unsent;
      await ask(await place(), { op: "msg", msg: text, ...(name && { name }) }, CALL_LIMIT_MS);
      unsent.shift();
      say($("unsent"), "");
    }
  } catch (error) {
    // Back into the box, before what was begun meanwhile.
    box.value = [...unsent.map((message) => message.text), box.value].filter(Boolean).join("\n");
    unsent = [];
    say($("unsent"), `Not sent. ${error.message} Your message is still here; send it again.`);
  } finally {
    sending = false;
  }
}

function say(place, text) {
  if (place.textContent !== text) place.textContent = text;
  place.hidden = text === "";
}

function show(messages) {
  const room = $("room");
  const atEnd = room.scrollHeight - room.scrollTop - room.clientHeight < 40;
  const items = document.createDocumentFragment();
  for (const message of messages) items.append(item(message));
  $("messages").append(items);
  if (messages.length > 0) {
    $("empty").hidden = true;
    if (atEnd || room.ariaBusy === "true") room.scrollTop = room.scrollHeight;
    else $("newest").hidden = false;
    if (document.hidden) miss(messages.length);
  }
  // From here on a screen reader reads what is new.
  room.ariaBusy = "false";
}

function item({ ts, msg, name }) {
  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    made.className = className;
    made.textContent = text;
    made.dir = "auto";
    return made;
  };
  const at = new Date(ts / 1000);
  const today = at.toDateString() === new Date().toDateString();
  const date = today ? {} : { month: "short", day: "numeric" };
  const time = element(
    "time",
    "",
    at.toLocaleString([], { ...date, hour: "2-digit", minute: "2-digit" }),
  );
  time.dateTime = at.toISOString();
  time.title = at.toLocaleString();
  const head = document.createElement("p");
  head.className = "head";
  head.append(element("span", "who", name || "Anonymous"), time);
  const li = document.createElement("li");
  if (name && name === $("name").value.trim()) li.className = "own";
  li.append(head, element("p", "text", msg));
  return li;
}

let missed = 0;
function miss(count) {
  missed += count;
  document.title = missed > 0 ? `(${missed}) ${title}` : title;
}

// A browser may keep nothing, for pages that are files too.
function remembered(name) {
  try {
    return localStorage.getItem(name) ?? "";
  } catch {
    return "";
  }
}

function remember(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // Then it is written again the next time.
  }
}

$("name").value = remembered("pychat-name");
$("name").addEventListener("change", () => remember("pychat-name", $("name").value.trim()));
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("text").addEventListener("keydown", (event) => {
  // Enter that ends the writing of one sign, as in Japanese, does not send.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
$("newest").addEventListener("click", () => {
  $("room").scrollTop = $("room").scrollHeight;
});
$("room").addEventListener("scroll", () => {
  const room = $("room");
  if (room.scrollHeight - room.scrollTop - room.clientHeight < 40) $("newest").hidden = true;
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) miss(-missed);
});
follow();
