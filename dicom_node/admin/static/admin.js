// What the pages cannot do without a script: refresh themselves, and slide through slices.
"use strict";

const live = document.querySelector("#live[data-every]");

async function refresh() {
  if (document.hidden) return;
  const address = new URL(location.href);
  address.searchParams.set("part", "1");
  let answer;
  try {
    answer = await fetch(address, { credentials: "same-origin" });
  } catch {
    live.classList.add("stale");
    return;
  }
  if (answer.status === 401) location.assign("/login");
  live.classList.toggle("stale", !answer.ok);
  if (!answer.ok) return;
  const text = await answer.text();
  const active = document.activeElement;
  const isTyping = live.contains(active) && active.matches("input, textarea");
  if (text === live.dataset.text || isTyping) return;
  const typed = [...live.querySelectorAll("input[name=why]")].some((each) => each.value);
  if (typed) return;
  const open = [...live.querySelectorAll("details[open]")].map((each) => each.id);
  const path = live.contains(active) ? find(active) : null;
  live.innerHTML = text;
  live.dataset.text = text;
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  if (path) live.querySelectorAll(path[0])[path[1]]?.focus();
}

// Where the focus is, so that it stays there for who walks by keyboard.
function find(element) {
  const kind = "a, button, summary";
  const place = [...live.querySelectorAll(kind)].indexOf(element);
  return place < 0 ? null : [kind, place];
}

if (live) setInterval(refresh, 1000 * Number(live.dataset.every));

for (const slider of document.querySelectorAll("input[data-plane]")) {
  const plane = slider.closest(".plane");
  const number = plane.querySelector("output b");
  const pictures = [...plane.querySelectorAll("img[data-picture]")];
  let shown = slider.value;
  let loading = 0;

  const show = () => {
    if (loading || shown === slider.value) return;
    shown = slider.value;
    number.textContent = Number(shown) + 1;
    for (const picture of pictures) {
      loading += 1;
      picture.onload = picture.onerror = () => {
        loading -= 1;
        show();
      };
      picture.src = `${picture.dataset.picture}${shown}.png`;
    }
  };
  slider.addEventListener("input", show);
  plane.addEventListener(
    "wheel",
    (event) => {
      if (!event.target.closest(".frame")) return;
      event.preventDefault();
      slider.value = Number(slider.value) + Math.sign(event.deltaY);
      show();
    },
    { passive: false },
  );
}
document.documentElement.classList.add("scripted");
