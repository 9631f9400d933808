// Keeps a page up to date: asks for it again and again, with the tag of what is shown, and replaces what has changed.
"use strict";

const age = document.getElementById("age");
const trouble = document.getElementById("trouble");
const shown = document.querySelector("main");
const parts = (main) => [...main.children];
const sources = new WeakMap(parts(shown).map((part) => [part, part.outerHTML]));

function ago(moment) {
  const seconds = Math.max(0, Math.round((Date.now() - moment) / 1000));
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const [size, unit] = units.find(([least]) => seconds >= least) || units[3];
  return `${Math.floor(seconds / size)} ${unit} ago`;
}

function tick() {
  const moment = new Date(age.dataset.lookedAt);
  age.textContent = `As of ${moment.toISOString().slice(0, 19).replace("T", " ")} UTC, ${ago(moment)}`;
  for (const each of shown.querySelectorAll("time")) {
    each.title ||= each.textContent;
    each.textContent = ago(new Date(each.dateTime));
  }
}

// Puts a part in the place of an older one; what a user has opened, chosen, scrolled to and focused stays so.
function replace(old, part) {
  const pairs = (selector) => {
    const fresh = part.querySelectorAll(selector);
    return [...old.querySelectorAll(selector)].map((each, n) => [each, fresh[n]]).filter(([, each]) => each);
  };
  for (const [each, fresh] of pairs("details")) fresh.open = each.open;
  for (const [each, fresh] of pairs("input[type=checkbox]")) fresh.checked = each.checked;
  const places = pairs(".scroll").map(([each, fresh]) => [fresh, each.scrollLeft, each.scrollTop]);
  const focused = pairs("a, button, summary, input, [tabindex]").find(([each]) => each === document.activeElement);
  old.replaceWith(part);
  for (const [fresh, left, top] of places) fresh.scrollTo(left, top);
  if (focused) focused[1].focus({ preventScroll: true });
}

function show(page) {
  const fresh = page.querySelector("main");
  const old = new Map(parts(shown).map((part) => [part.id, part]));
  const wanted = new Set(parts(fresh).map((part) => part.id));
  for (const [id, part] of old) if (!wanted.has(id)) part.remove();
  parts(fresh).forEach((part, n) => {
    const before = old.get(part.id);
    const source = part.outerHTML;
    // What is being typed into a form stays.
    if (before && (before.tagName === "FORM" || sources.get(before) === source)) return;
    sources.set(part, source);
    if (before) replace(before, part);
    else shown.insertBefore(part, shown.children[n] || null);
  });
  shown.dataset.tag = fresh.dataset.tag;
  document.title = page.title;
}

async function look() {
  let words = "The server of these pages does not answer; what is shown grows old.";
  try {
    const headers = { "If-None-Match": shown.dataset.tag };
    const reply = await fetch(location.href, { headers, cache: "no-store" });
    if (reply.redirected) {
      location.replace(reply.url);
      return;
    }
    const html = reply.headers.get("Content-Type")?.startsWith("text/html");
    const text = await reply.text();
    const page = html ? new DOMParser().parseFromString(text, "text/html") : null;
    if (reply.ok || reply.status === 304) {
      age.dataset.lookedAt = reply.headers.get("Looked-At");
      words = "";
    } else {
      words = page?.querySelector("main p")?.textContent || text;
    }
    if (reply.ok) show(page);
  } catch {
    // The words say it.
  }
  if (trouble.textContent !== words) trouble.textContent = words;
  tick();
}

async function follow() {
  // Nobody is asked for a page that nobody sees.
  if (!document.hidden) await look();
  setTimeout(follow, 1000 * Number(age.dataset.every));
}

if (shown.dataset.tag) {
  document.addEventListener("visibilitychange", () => document.hidden || look());
  setTimeout(follow, 1000 * Number(age.dataset.every));
}
setInterval(tick, 1000);
tick();
