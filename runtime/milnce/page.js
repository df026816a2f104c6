
"use strict";
// Captions, names and keys are anybody's text: they only ever become text nodes or attributes' values, never markup.
(() => {
  const BATCH = 24; // queries added at a time: about two screens
  const BANDS = [
    { name: "all", label: "All", least: 1, most: Infinity },
    { name: "first", label: "Rank 1", least: 1, most: 1 },
    { name: "near", label: "Rank 2 to 5", least: 2, most: 5 },
    { name: "middle", label: "Rank 6 to 10", least: 6, most: 10 },
    { name: "far", label: "Worse", least: 11, most: Infinity },
  ];
  const ORDERS = { given: null, best: (a, b) => a.rank - b.rank, worst: (a, b) => b.rank - a.rank };

  const byId = (id) => document.getElementById(id);
  const json = (id) => JSON.parse(byId(id).textContent);
  const fold = (text) => text.normalize("NFKC").toLowerCase();
  const number = (value) => value.toLocaleString("en");

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // As R@1, R@5 and R@10 count: a shared rank is the whole rank below it, but never a right answer at rank 1.
  const place = (rank) => (rank === 1 ? 1 : Math.max(2, Math.floor(rank)));
  const bandOf = (query) => BANDS.slice(1).find((band) => within(query, band));
  const within = (query, { least, most }) => query.place >= least && query.place <= most;

  const queries = json("queries-data");
  for (const query of queries) {
    query.place = place(query.rank);
    query.folded = fold(query.caption);
  }

  const initial = { least: 1, most: Infinity, text: "", order: "given" };
  let state = { ...initial };
  let matching = [];
  let drawn = 0;

  // ---- the view in the address: #rank=2-5&text=tomato&order=worst

  function toFragment({ least, most, text, order }) {
    const fields = new URLSearchParams();
    if (least !== 1 || most !== Infinity) fields.set("rank", `${least}-${most === Infinity ? "" : most}`);
    if (text) fields.set("text", text);
    if (order !== "given") fields.set("order", order);
    return fields.toString();
  }

  function fromFragment(fragment) {
    const fields = new URLSearchParams(fragment.replace(/^#/, ""));
    const [, least, most] = /^(\d{1,9})-(\d{0,9})$/.exec(fields.get("rank") ?? "") ?? [];
    const order = fields.get("order");
    return {
      least: Math.max(1, Number(least ?? 1)),
      most: most ? Math.max(1, Number(most)) : Infinity,
      text: fields.get("text") ?? "",
      order: Object.hasOwn(ORDERS, order ?? "") ? order : "given",
    };
  }

  let saving = 0;
  function saveFragment() {
    clearTimeout(saving); // browsers refuse an address that changes at every key
    saving = setTimeout(() => history.replaceState(null, "", `#${toFragment(state)}`), 150);
  }

  // ---- pictures: each is in the page once, as JSON text, and is read when it is first needed

  const uris = new Map();
  function uriOf(key) {
    if (!uris.has(key)) uris.set(key, json(`picture-${key}`));
    return uris.get(key);
  }

  const looping = byId("loops");
  const reduced = matchMedia("(prefers-reduced-motion: reduce)");

  async function fillFrame(frame) {
    const image = new Image();
    image.alt = frame.dataset.label;
    image.src = uriOf(Number(frame.dataset.picture));
    const playing = looping.checked;
    if (playing) {
      frame.replaceChildren(image);
      return;
    }
    try {
      await image.decode();
    } catch {
      frame.replaceChildren("picture cannot be shown");
      return;
    }
    if (looping.checked !== playing) return; // changed while it was decoded: another call fills it
    const still = element("canvas");
    still.width = image.naturalWidth;
    still.height = image.naturalHeight;
    still.setAttribute("role", "img");
    still.setAttribute("aria-label", image.alt);
    still.getContext("2d").drawImage(image, 0, 0); // of an animation this draws the first picture
    frame.replaceChildren(still);
  }

  // ---- one query

  function clock(seconds) {
    const tenths = Math.round(seconds * 10);
    const minutes = Math.floor(tenths / 600);
    const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
    return minutes < 60 ? `${minutes}:${rest}` : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
  }

  function times({ start_s: start, end_s: end }) {
    if (start === null && end === null) return "whole video";
    return `${clock(start ?? 0)} \u2013 ${end === null ? "end" : clock(end)}`;
  }

  function drawVideo(video) {
    const item = element("li", video.correct ? "video right" : "video");
    const frame = element("div", "frame", video.picture === null ? "no picture" : undefined);
    if (video.picture !== null) {
      frame.dataset.picture = video.picture;
      frame.dataset.label = `Pictures from ${video.video}`;
      fillFrame(frame);
    }
    const line = element("p", "line");
    line.append(element("b", "", `${number(video.rank)}${video.correct ? " \u2713 right" : ""}`));
    line.append(element("span", "score", video.score.toFixed(3)));
    const name = element("p", "name", video.video);
    name.dir = "auto";
    name.title = video.video;
    item.append(frame, line, name, element("p", "time", times(video)));
    return item;
  }

  function drawQuery(query) {
    const item = element("li", "query");
    const header = element("header");
    const caption = element("h3", "", query.caption);
    caption.dir = "auto";
    header.append(caption, element("span", `badge ${bandOf(query).name}`, `rank ${number(query.rank)}`));
    const shown = element("ol", "shown");
    shown.append(...query.shown.map(drawVideo));
    item.append(header, shown);
    return item;
  }

  // ---- the list, a batch at a time

  const list = byId("queries");
  const more = byId("more");
  const nearEnd = new IntersectionObserver(
    (entries) => entries.some((entry) => entry.isIntersecting) && drawMore(),
    { rootMargin: "1200px" },
  );

  function drawMore() {
    const batch = matching.slice(drawn, drawn + BATCH);
    list.append(...batch.map(drawQuery));
    drawn += batch.length;
    more.hidden = drawn >= matching.length;
    nearEnd.unobserve(more);
    if (!more.hidden) nearEnd.observe(more); // anew, so that it reports even if the end is still near
  }

  function draw() {
    const words = fold(state.text).split(/\s+/).filter(Boolean);
    matching = queries.filter((query) => within(query, state) && words.every((word) => query.folded.includes(word)));
    if (ORDERS[state.order]) matching.sort(ORDERS[state.order]);
    list.replaceChildren();
    drawn = 0;
    byId("status").textContent = `${number(matching.length)} of ${number(queries.length)} queries`;
    byId("none").hidden = matching.length > 0;
    drawMore();
  }

  // ---- controls

  function showBand() {
    for (const band of BANDS) {
      byId(`rank-${band.name}`).checked = band.least === state.least && band.most === state.most;
    }
  }

  function showState() {
    showBand();
    byId("least").value = state.least === 1 ? "" : state.least;
    byId("most").value = state.most === Infinity ? "" : state.most;
    byId("search").value = state.text;
    byId("order").value = state.order;
  }

  function change(changes, { keepInputs = false } = {}) {
    state = { ...state, ...changes };
    if (!keepInputs) showState();
    draw();
    saveFragment();
  }

  function drawPreset(band) {
    const count = queries.filter((query) => within(query, band)).length;
    const share = queries.length ? count / queries.length : 0;
    const holder = element("div", "preset");
    const radio = element("input");
    Object.assign(radio, { type: "radio", name: "rank", id: `rank-${band.name}` });
    radio.addEventListener("change", () => change({ least: band.least, most: band.most }));
    const label = element("label");
    label.htmlFor = radio.id;
    const bar = element("i");
    bar.style.setProperty("--share", `${share * 100}%`);
    label.append(element("b", "", band.label), element("span", "", `${number(count)} \u00b7 ${(share * 100).toFixed(1)} %`), bar);
    holder.append(radio, label);
    return holder;
  }

  function rangeChanged() {
    const read = (id, otherwise) => (byId(id).value === "" ? otherwise : Math.max(1, Math.floor(byId(id).valueAsNumber)));
    change({ least: read("least", 1), most: read("most", Infinity) }, { keepInputs: true });
    showBand();
  }

  function loopsChanged() {
    for (const frame of document.querySelectorAll(".frame[data-picture]")) fillFrame(frame);
  }

  function start() {
    byId("presets").append(...BANDS.map(drawPreset));
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    byId("least").addEventListener("input", rangeChanged);
    byId("most").addEventListener("input", rangeChanged);
    byId("search").addEventListener("input", (event) => change({ text: event.target.value }, { keepInputs: true }));
    byId("order").addEventListener("change", (event) => change({ order: event.target.value }));
    byId("reset").addEventListener("click", () => {
      change(initial);
      byId("search").focus(); // the button that had it is gone
    });
    more.addEventListener("click", drawMore);
    looping.checked = !reduced.matches;
    looping.addEventListener("change", loopsChanged);
    reduced.addEventListener("change", () => {
      looping.checked = !reduced.matches;
      loopsChanged();
    });
    addEventListener("hashchange", () => {
      state = fromFragment(location.hash);
      showState();
      draw();
    });
    byId("ties").hidden = queries.every((query) => Number.isInteger(query.rank));
    byId("controls").hidden = false;
    state = fromFragment(location.hash);
    showState();
    draw();
  }

  start();
})();
