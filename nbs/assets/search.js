// Search of the site: BM25 over titles, headings, descriptions, names and prose, with synonyms and near spellings.
(() => {
  "use strict";
  const WEIGHTS = { title: 7, section: 5, description: 4, names: 4, text: 1 };
  const STOP = new Set("a an and are as at be by can do does for from has have how i if in is it its me my of on or so that the their there this to use using was what when where which who why will with you your".split(" "));
  const fold = (s) => s.toLowerCase().normalize("NFKD").replace(/[\u0300-\u036f]/g, "");
  const split = (s) => fold(s).match(/[a-z0-9]+(?:[_.][a-z0-9]+)*/g) || [];
  const stem = (w) => {
    if (w.length < 4 || /[_.0-9]/.test(w)) return w;
    for (const [end, to] of [["ies", "y"], ["sses", "ss"], ["ings", ""], ["ing", ""], ["edly", ""], ["ed", ""], ["es", "e"], ["s", ""]]) {
      if (w.endsWith(end) && !(end === "s" && /(ss|us|is)$/.test(w)) && w.length - end.length >= 3) {
        w = w.slice(0, w.length - end.length) + to;
        break;
      }
    }
    return w.replace(/(..[^aeiou])e$/, "$1").replace(/([bdgmnprt])\1$/, "$1");
  };
  // a name such as open_raster is found by itself and by its parts
  const terms = (s) => split(s).flatMap((w) => (/[_.]/.test(w) ? [w, ...w.split(/[_.]/)] : [w])).map(stem);
  const near = (a, b) => { // at most one letter apart
    if (Math.abs(a.length - b.length) > 1 || a[0] !== b[0]) return false;
    let i = 0;
    while (i < a.length && a[i] === b[i]) i++;
    return a.slice(i + 1) === b.slice(i + 1) || a.slice(i) === b.slice(i + 1) || a.slice(i + 1) === b.slice(i)
      || (a[i] === b[i + 1] && a[i + 1] === b[i] && a.slice(i + 2) === b.slice(i + 2));
  };

  let index = null;
  const build = (entries, synonyms) => {
    const pages = new Map();
    const docs = entries.map((e) => {
      const counts = {};
      let length = 0;
      for (const [field, weight] of Object.entries(WEIGHTS)) {
        const words = terms(e[field] || "");
        if (field === "text") length = words.length;
        for (const t of words) {
          const c = (counts[t] = counts[t] || { top: 0, n: 0 });
          if (field === "text") c.n++; else c.top = Math.max(c.top, weight);
        }
      }
      const page = e.href.split("#")[0];
      const d = { e, counts, length, page };
      if (!pages.has(page)) pages.set(page, []);
      pages.get(page).push(d);
      return d;
    });
    const df = {};
    for (const sections of pages.values()) {
      for (const t of new Set(sections.flatMap((d) => Object.keys(d.counts)))) df[t] = (df[t] || 0) + 1;
    }
    const mean = docs.reduce((n, d) => n + d.length, 0) / Math.max(1, docs.length);
    const also = new Map(); // term -> [[term, ...], ...]
    for (const [key, values] of Object.entries(synonyms)) {
      also.set(terms(key).join(" "), values.map((v) => terms(v)));
    }
    index = { pages, docs, df, mean, also, n: pages.size };
  };

  // what a query asks for: groups of alternatives [term, weight]; a page should have one of each group
  const groups = (query) => {
    const all = split(query).map((w) => ({ w, t: stem(w) }));
    let words = all.filter((x) => !STOP.has(x.w));
    if (!words.length) words = all;
    const res = [];
    words.forEach(({ t }, i) => {
      const alternatives = new Map([[t, 1]]);
      const add = (x, w) => alternatives.set(x, Math.max(w, alternatives.get(x) || 0));
      for (const x of terms(t)) if (x !== t) add(x, 0.4);
      const two = i + 1 < words.length ? `${t} ${words[i + 1].t}` : "";
      for (const key of [t, two]) for (const v of index.also.get(key) || []) v.forEach((x) => add(x, 0.75 / Math.sqrt(v.length)));
      if (!index.df[t]) {
        const known = Object.keys(index.df);
        const close = t.length >= 4 ? known.filter((x) => near(t, x)) : [];
        const longer = t.length >= 3 ? known.filter((x) => x.startsWith(t)) : [];
        close.slice(0, 8).forEach((x) => {
          add(x, 0.6);
          for (const v of index.also.get(x) || []) v.forEach((y) => add(y, 0.6 / Math.sqrt(v.length)));
        });
        longer.slice(0, 30).forEach((x) => add(x, 0.5));
      } else if (i === words.length - 1 && t.length >= 3) {
        Object.keys(index.df).filter((x) => x.startsWith(t) && x !== t).slice(0, 30).forEach((x) => add(x, 0.25));
      }
      res.push([...alternatives]);
    });
    return res;
  };
  const idf = (t) => Math.log(1 + (index.n - index.df[t] + 0.5) / (index.df[t] + 0.5));
  const score = (d, group) => Math.max(0, ...group.map(([t, w]) => {
    const c = d.counts[t];
    if (!c) return 0;
    const tf = (c.n * 2.2) / (c.n + 1.2 * (0.4 + (0.6 * d.length) / index.mean));
    return w * idf(t) * (c.top + tf);
  }));
  const search = (query, limit = 12) => {
    const asked = groups(query), hits = [];
    if (!asked.length) return hits;
    const phrase = fold(query).trim();
    for (const [page, sections] of index.pages) {
      let total = 0, found = 0;
      for (const g of asked) {
        // a page counts by its best section for a word and by how many others speak of it
        const each = sections.map((d) => score(d, g)).sort((a, b) => b - a);
        if (each[0] > 0) found++;
        total += each[0] + 0.25 * (each[1] || 0) + 0.1 * (each[2] || 0);
      }
      if (!found) continue;
      const best = sections
        .map((d) => [asked.reduce((n, g) => n + score(d, g), 0), d])
        .reduce((a, b) => (b[0] > a[0] ? b : a));
      total = (total + 1.5 * best[0]) * (found / asked.length) ** 2;
      if (/^reference\/(index|errors)/.test(page)) total *= 0.5; // lists of everything
      if (fold(sections[0].e.title) === phrase) total *= 2;
      if (sections.some((d) => fold(d.e.section) === phrase)) total *= 1.5;
      hits.push({ page, total, href: best[1].e.href, title: best[1].e.title, section: best[1].e.section,
        text: best[1].e.text || best[1].e.description });
    }
    hits.sort((a, b) => b.total - a.total);
    return hits.slice(0, limit);
  };

  const form = document.querySelector(".site-search");
  const up = form ? form.dataset.up : "";
  let loading = null;
  const load = () => (loading = loading || Promise.all(["search.json", "assets/synonyms.json"].map((f) => fetch(up + f).then((r) => r.json())))
    .then(([entries, synonyms]) => build(entries, synonyms)));
  window.siteSearch = async (query, limit) => { await load(); return search(query, limit); };
  if (!form) return;

  const input = form.querySelector("input"), list = form.querySelector("#search-results");
  const safe = (s) => s.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const snippet = (text, query) => {
    const words = split(query).filter((w) => w.length > 2).map((w) => w.slice(0, Math.max(3, w.length - 2)));
    const at = Math.min(...words.map((w) => fold(text).indexOf(w)).filter((i) => i >= 0), text.length);
    const start = at === text.length ? 0 : Math.max(0, text.lastIndexOf(" ", Math.max(0, at - 60)));
    let s = safe(text.slice(start, start + 160));
    for (const w of words) s = s.replace(new RegExp(`(?<![&#\\w])(${w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}\\w*)`, "gi"), "<mark>$1</mark>");
    return (start ? "… " : "") + s + (start + 160 < text.length ? " …" : "");
  };
  let active = -1;
  const close = () => { list.hidden = true; input.setAttribute("aria-expanded", "false"); input.removeAttribute("aria-activedescendant"); active = -1; };
  const show = async () => {
    const query = input.value.trim();
    if (query.length < 2) { close(); return; }
    await load();
    if (query !== input.value.trim()) return;
    const hits = search(query);
    list.innerHTML = hits.length ? hits.map((h, i) =>
      `<a id="hit-${i}" role="option" aria-selected="false" class="hit" href="${up}${h.href}"><span class="hit-title">${safe(h.title)}${h.section && h.section !== h.title ? ` <span class="hit-section">› ${safe(h.section)}</span>` : ""}</span>` +
      `<span class="hit-text">${snippet(h.text, query)}</span></a>`).join("") : '<div class="no-hit" role="option" aria-selected="false">Nothing found. Try another word, or look at the index of all names.</div>';
    list.hidden = false;
    active = -1;
    input.setAttribute("aria-expanded", "true");
  };
  let timer = null;
  input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(show, 100); });
  input.addEventListener("focus", () => { load(); if (input.value.trim().length > 1) show(); });
  form.addEventListener("submit", (ev) => ev.preventDefault());
  input.addEventListener("keydown", (ev) => {
    const hits = [...list.querySelectorAll(".hit")];
    if (ev.key === "Escape") close();
    if (!hits.length || list.hidden) return;
    if (ev.key === "ArrowDown" || ev.key === "ArrowUp") {
      ev.preventDefault();
      active = (active + (ev.key === "ArrowDown" ? 1 : -1) + hits.length) % hits.length;
      hits.forEach((h, i) => { h.classList.toggle("active", i === active); h.setAttribute("aria-selected", String(i === active)); });
      input.setAttribute("aria-activedescendant", hits[active].id);
      hits[active].scrollIntoView({ block: "nearest" });
    } else if (ev.key === "Enter") {
      ev.preventDefault();
      (hits[active] || hits[0]).click();
    }
  });
  document.addEventListener("click", (ev) => { if (!form.contains(ev.target)) close(); });
  document.addEventListener("keydown", (ev) => {
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
    if ((ev.key === "/" && !typing) || ((ev.metaKey || ev.ctrlKey) && ev.key === "k")) { ev.preventDefault(); input.focus(); }
  });

  // the current page stays in view in the sidebar
  const here = document.querySelector("#quarto-sidebar .sidebar-link.active"), bar = document.querySelector("#quarto-sidebar");
  if (here && bar && here.offsetTop > bar.clientHeight * 0.7) bar.scrollTop = here.offsetTop - bar.clientHeight / 2;
  document.querySelectorAll(".anchorjs-link").forEach((a) => {
    const h = a.parentElement;
    a.setAttribute("aria-label", `Link to ${h ? h.innerText.trim() : "this section"}`);
  });
})();
