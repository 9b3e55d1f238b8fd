"use strict";
// One structure at a time, at one of its places, with arrows from the target to where atoms are.
(() => {
  const FAR = 0.2; // Angstrom: atoms that are farther from the target are marked
  const RARE = 0.15; // elements of fewer atoms, such as a defect's or an adsorbate's, are never pale
  const ARROW = "#d95f02", TARGET = "#1b9e77", CELL = "#999999";
  const source = document.getElementById("structures");
  if (!source) return;
  const all = JSON.parse(source.textContent);
  const part = (name) => document.querySelector(`.viewer .${name}`);
  if (!document.createElement("canvas").getContext("webgl2")) {
    part("state").textContent = "This browser has no WebGL, so the structures cannot be drawn.";
    return;
  }
  const viewer = $3Dmol.createViewer(part("canvas"), { backgroundColor: "white", antialias: true });
  const point = ([x, y, z]) => ({ x, y, z });
  const pale = (colour) => { // half way to white
    const channel = (shift) => Math.round(((colour >> shift) & 255) * 0.45 + 255 * 0.55);
    return (channel(16) << 16) | (channel(8) << 8) | channel(0);
  };
  const colourOf = (symbol) => $3Dmol.elementColors.Jmol[symbol] ?? 0x808080;
  let chosen = all[0], place = "target";

  function drawCell(cell) {
    const corner = (i, j, k) => [0, 1, 2].map((x) => i * cell[0][x] + j * cell[1][x] + k * cell[2][x]);
    for (const [a, b, c] of [[0, 1, 2], [1, 0, 2], [2, 0, 1]]) {
      for (const [p, q] of [[0, 0], [0, 1], [1, 0], [1, 1]]) {
        const from = [0, 0, 0], to = [0, 0, 0];
        to[a] = 1;
        from[b] = to[b] = p;
        from[c] = to[c] = q;
        viewer.addLine({ start: point(corner(...from)), end: point(corner(...to)), color: CELL });
      }
    }
  }

  function draw(anew) {
    const where = chosen.places[place].positions, target = chosen.places.target.positions;
    const apart = where.map((x, i) => Math.hypot(...x.map((value, axis) => value - target[i][axis])));
    viewer.removeAllModels();
    viewer.removeAllShapes();
    viewer.removeAllLabels();
    const lines = where.map((x, i) => [chosen.symbols[i], ...x].join(" "));
    const model = viewer.addModel([where.length, "", ...lines].join("\n"), "xyz");
    if (anew) viewer.zoomTo(); // to the atoms: shapes such as the cell come later
    const symbols = [...new Set(chosen.symbols)];
    const ball = (color, radius) => ({ sphere: { color, radius }, stick: { color, radius: 0.06 } });
    for (const symbol of symbols) {
      const rare = chosen.symbols.filter((x) => x === symbol).length < RARE * where.length;
      const color = rare || place === "target" ? colourOf(symbol) : pale(colourOf(symbol));
      model.setStyle({ elem: symbol }, ball(color, rare ? 0.35 : 0.25));
    }
    apart.forEach((far, i) => {
      if (far <= FAR) return;
      model.setStyle({ index: i }, ball(colourOf(chosen.symbols[i]), 0.25)); // not over its arrow
      viewer.addSphere({ center: point(target[i]), radius: 0.25, color: TARGET, opacity: 0.6 });
      viewer.addArrow({ start: point(target[i]), end: point(where[i]), radius: 0.09, color: ARROW, mid: 0.6 });
    });
    let label;
    viewer.setHoverable({}, true,
      (atom) => {
        const text = `${chosen.symbols[atom.index]} ${atom.index}: ${apart[atom.index].toFixed(2)} Å from its target`;
        label = viewer.addLabel(text, { position: atom, fontSize: 12, backgroundOpacity: 0.75 });
      },
      () => viewer.removeLabel(label));
    drawCell(chosen.cell);
    viewer.render();
    describe(apart, symbols);
  }

  function describe(apart, symbols) {
    const far = apart.filter((x) => x > FAR).length;
    const moved = place === "target" ? "" :
      ` ${far} of ${apart.length} atoms are more than ${FAR} Å from their targets (orange arrows, from the`
      + ` target in green), the farthest ${Math.max(...apart).toFixed(2)} Å.`;
    part("state").textContent = `${chosen.name} at ${chosen.places[place].title}.${moved}`;
    part("elements").replaceChildren(...symbols.flatMap((symbol) => {
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = `#${colourOf(symbol).toString(16).padStart(6, "0")}`;
      const count = chosen.symbols.filter((x) => x === symbol).length;
      return [swatch, `${symbol} (${count})`];
    }));
  }

  function button(text, small, pressed, act) {
    const made = document.createElement("button");
    made.textContent = text;
    if (small) made.appendChild(document.createElement("small")).textContent = small;
    made.setAttribute("aria-pressed", pressed);
    made.addEventListener("click", act);
    return made;
  }

  function offer() {
    part("list").replaceChildren(...all.map((each) =>
      button(each.name, each.about, each === chosen, () => show(each))));
    part("places").replaceChildren(...Object.entries(chosen.places).flatMap(([key, value]) =>
      [button(value.title, "", key === place, () => { place = key; offer(); draw(false); }), " "]));
  }

  function show(structure) {
    chosen = structure;
    if (!(place in chosen.places)) place = "target";
    offer();
    draw(true);
  }

  document.addEventListener("structure", (event) => {
    const found = all.find((each) => each.row === event.detail);
    if (!found) return;
    show(found);
    part("scene").scrollIntoView({ behavior: "smooth", block: "nearest" });
  });
  place = all[0].first;
  show(all[0]);
  viewer.rotate(-70, "x");
  viewer.rotate(20, "y");
  viewer.render();
})();
