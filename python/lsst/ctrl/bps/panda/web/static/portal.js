// Asks, whenever a choice changes, what follows from it, and puts the choices into the page's address.
"use strict";

const choices = document.getElementById("choices");
let asked = 0;
let timer = 0;

// What acts on the choices waits for the answer to them.
function allow(on) {
  for (const each of document.querySelectorAll("#preview button, #upload button")) each.disabled = !on;
}

async function renew() {
  try {
    await ask();
  } catch {
    trouble.textContent = "The choices could not be checked; press Preview to try again.";
  }
}

async function ask() {
  const mine = ++asked;
  allow(false);
  const pairs = [...new FormData(choices)].filter(([name, text]) => text.trim() || name === "bands");
  const address = `${choices.action}?${new URLSearchParams(pairs)}`;
  const reply = await fetch(address, { cache: "no-store" });
  const page = new DOMParser().parseFromString(await reply.text(), "text/html");
  // Meanwhile something else was chosen, which was asked about, too.
  if (mine !== asked) return;
  if (!page.getElementById("choices")) throw new Error(reply.status);
  trouble.textContent = "";
  history.replaceState(null, "", page.getElementById("share")?.href || address);
  for (const each of choices.querySelectorAll("[data-renew]")) {
    const fresh = page.getElementById(each.id);
    if (fresh.outerHTML !== each.outerHTML) replace(each, fresh);
  }
  for (const each of choices.elements) {
    each.toggleAttribute("aria-invalid", Boolean(document.getElementById(`answer-${each.name}`)?.textContent));
  }
  show(page);
  allow(true);
}

function soon() {
  clearTimeout(timer);
  asked += 1;
  allow(false);
  timer = setTimeout(renew, 300);
}

// A detector, or all of a raft: chosen if they were not.
function toggle(part) {
  const field = choices.elements.only;
  const chosen = new Set(field.value.split(",").map((text) => text.trim()).filter(Boolean));
  const numbers = part.dataset.detectors.split(",");
  const all = numbers.every((each) => chosen.has(each));
  for (const each of numbers) all ? chosen.delete(each) : chosen.add(each);
  field.value = [...chosen].sort((a, b) => a - b).join(",");
  soon();
}

choices.addEventListener("input", soon);
choices.addEventListener("submit", (event) => {
  event.preventDefault();
  renew();
});
choices.addEventListener("click", (event) => {
  const part = event.target.closest("[data-detectors]");
  if (part) toggle(part);
});
choices.addEventListener("keydown", (event) => {
  const part = event.target.closest("[data-detectors]");
  if (!part || ![" ", "Enter"].includes(event.key)) return;
  event.preventDefault();
  toggle(part);
});
