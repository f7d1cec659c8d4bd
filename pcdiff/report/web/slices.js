// Draws slices of a head with outlines, from volumes of 1 mm that come as tiles of a picture, see `report/slices.py`.
// Millimetres, LPS: +x is the patient's left, +y posterior, +z superior.
"use strict";
(function () {
  const BARS = [50, 20, 10, 5], BAR_SHARE = 0.34;
  const COLOURS = { bone: "#ffd54a", implant: "#35d0ff", mirrored: "#ff7bd5" };
  const HALF = 127.5;
  const add = (p, d, t) => p.map((value, k) => value + t * d[k]);
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const negative = (v) => v.map((value) => -value);

  // The side or sides of the patient that a direction points to, the main one first.
  function letters(direction) {
    return [0, 1, 2].filter((k) => Math.abs(direction[k]) > 0.4)
      .sort((a, b) => Math.abs(direction[b]) - Math.abs(direction[a]))
      .map((k) => ["RL", "AP", "IS"][k][direction[k] > 0 ? 1 : 0]).join("");
  }

  const side = (axis, mm) => `${["RL", "AP", "IS"][axis][mm >= 0 ? 1 : 0]} ${Math.abs(mm).toFixed(0)}`;
  const place = (point) => `${point.map((mm, axis) => side(axis, mm)).join(", ")}\u00a0mm`;

  // A volume from the tiles of a picture: value at (x, y, z) in `values[x + nx * (y + ny * z)]`.
  async function volume(uri, grid) {
    const image = new Image();
    image.src = uri;
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const [nx, ny, nz] = grid.shape, values = new Uint8Array(nx * ny * nz);
    for (let z = 0, at = 0; z < nz; z++) {
      const left = (z % grid.columns) * nx, top = Math.floor(z / grid.columns) * ny;
      for (let y = 0; y < ny; y++) {
        let from = 4 * ((top + y) * canvas.width + left);
        for (let x = 0; x < nx; x++, from += 4) values[at++] = pixels[from];
      }
    }
    return { values: values, shape: grid.shape, low: grid.low };
  }

  // Values at the points of a plane, interpolated linearly; 0 outside of the volume.
  function sampled(volume, plane) {
    const { values, shape: [nx, ny, nz] } = volume, out = new Float32Array(plane.rows * plane.columns);
    const start = plane.corner.map((value, k) => value - volume.low[k]), { right, down, step } = plane;
    for (let row = 0, n = 0; row < plane.rows; row++) {
      for (let column = 0; column < plane.columns; column++, n++) {
        const x = start[0] + step * (row * down[0] + column * right[0]);
        const y = start[1] + step * (row * down[1] + column * right[1]);
        const z = start[2] + step * (row * down[2] + column * right[2]);
        if (x < 0 || y < 0 || z < 0 || x > nx - 1 || y > ny - 1 || z > nz - 1) continue;
        const i = Math.min(Math.floor(x), nx - 2), j = Math.min(Math.floor(y), ny - 2), k = Math.min(Math.floor(z), nz - 2);
        const u = x - i, v = y - j, w = z - k, at = i + nx * (j + ny * k), above = at + nx * ny;
        const low = (values[at] * (1 - u) + values[at + 1] * u) * (1 - v)
          + (values[at + nx] * (1 - u) + values[at + nx + 1] * u) * v;
        const high = w ? (values[above] * (1 - u) + values[above + 1] * u) * (1 - v)
          + (values[above + nx] * (1 - u) + values[above + nx + 1] * u) * v : 0;
        out[n] = low * (1 - w) + high * w;
      }
    }
    return out;
  }

  // The segments where values cross the half (marching squares): [x1, y1, x2, y2] in points of the plane.
  function outline(values, plane) {
    const { rows, columns } = plane, segments = [];
    const crossing = (a, b) => (HALF - a) / (b - a);
    for (let row = 0; row < rows - 1; row++) {
      for (let column = 0; column < columns - 1; column++) {
        const at = row * columns + column;
        const a = values[at], b = values[at + 1], c = values[at + columns + 1], d = values[at + columns];
        const kind = (a > HALF) + 2 * (b > HALF) + 4 * (c > HALF) + 8 * (d > HALF);
        if (kind === 0 || kind === 15) continue;
        const ends = [];
        if ((a > HALF) !== (b > HALF)) ends.push([column + crossing(a, b), row]);
        if ((b > HALF) !== (c > HALF)) ends.push([column + 1, row + crossing(b, c)]);
        if ((c > HALF) !== (d > HALF)) ends.push([column + 1 - crossing(c, d), row + 1]);
        if ((d > HALF) !== (a > HALF)) ends.push([column, row + 1 - crossing(d, a)]);
        for (let n = 0; n + 1 < ends.length; n += 2) segments.push([...ends[n], ...ends[n + 1]]);
      }
    }
    return segments;
  }

  async function start(root) {
    const data = JSON.parse(root.querySelector("script").textContent);
    const [grey, bone, implant] = await Promise.all([
      data.grey ? volume(data.grey, data.head) : null, volume(data.bone, data.head),
      volume(data.implant.picture, data.implant),
    ]);
    const state = { point: data.focus.slice(), rim: 0 };
    const panels = [...root.querySelectorAll(".panel")].map((element) => ({
      element, name: element.dataset.plane, canvas: element.querySelector("canvas"),
      slider: element.querySelector("input"), output: element.querySelector("output"),
    }));
    const shown = (name) => root.querySelector(`[data-outline=${name}]`)?.checked;

    function planeOf(name) {
      if (name === "rim") {
        const { point, across, outward } = data.rim[state.rim], half = data.rimSize / 2, count = 2 * data.rimSize + 1;
        return { corner: add(add(point, across, -half), outward, half), right: across, down: negative(outward),
          rows: count, columns: count, step: 0.5 };
      }
      const { right, down } = data.planes[name], axis = axisOf(name), { low, shape } = data.head;
      const corner = low.map((value, k) => k === axis ? state.point[k] : right[k] + down[k] < 0 ? value + shape[k] - 1 : value);
      const count = (direction) => shape[direction.findIndex((value) => value !== 0)];
      return { corner, right, down, rows: count(down), columns: count(right), step: 1 };
    }

    const axisOf = (name) => [0, 1, 2].find((k) => !data.planes[name].right[k] && !data.planes[name].down[k]);

    // The plane's mirror image at the midsagittal plane: what lies there is drawn here.
    function mirrored(plane) {
      const { point, normal } = data.midplane;
      const turned = (direction) => add(direction, normal, -2 * dot(direction, normal));
      const away = dot(add(plane.corner, point, -1), normal);
      return { ...plane, corner: add(plane.corner, normal, -2 * away), right: turned(plane.right), down: turned(plane.down) };
    }

    function draw(panel) {
      const { canvas, element } = panel, plane = panel.plane = planeOf(panel.name);
      const bones = sampled(bone, plane), values = grey ? sampled(grey, plane) : bones.map((value) => value * data.maskGrey);
      const picture = new ImageData(plane.columns, plane.rows);
      for (let n = 0; n < values.length; n++) picture.data.fill(values[n], 4 * n, 4 * n + 3), picture.data[4 * n + 3] = 255;
      const small = document.createElement("canvas");
      small.width = plane.columns;
      small.height = plane.rows;
      small.getContext("2d").putImageData(picture, 0, 0);
      const box = canvas.getBoundingClientRect(), density = window.devicePixelRatio || 1;
      canvas.width = Math.round(box.width * density);
      canvas.height = Math.round(box.height * density);
      const scale = panel.scale = Math.min(canvas.width / plane.columns, canvas.height / plane.rows);
      const left = panel.left = (canvas.width - scale * plane.columns) / 2;
      const top = panel.top = (canvas.height - scale * plane.rows) / 2;
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(small, left, top, scale * plane.columns, scale * plane.rows);
      const outlines = { bone: () => bones, implant: () => sampled(implant, plane), mirrored: () => sampled(bone, mirrored(plane)) };
      for (const [name, valuesOf] of Object.entries(outlines)) {
        if (!shown(name)) continue;
        context.beginPath();
        for (const [x1, y1, x2, y2] of outline(valuesOf(), plane)) {
          context.moveTo(left + scale * (x1 + 0.5), top + scale * (y1 + 0.5));
          context.lineTo(left + scale * (x2 + 0.5), top + scale * (y2 + 0.5));
        }
        context.strokeStyle = COLOURS[name];
        context.lineWidth = 1.3 * density;
        context.stroke();
      }
      if (shown("cross")) cross(panel, context, density);
      const sides = { left: negative(plane.right), right: plane.right, top: negative(plane.down), bottom: plane.down };
      for (const [side, direction] of Object.entries(sides)) element.querySelector(".side." + side).textContent = letters(direction);
      const pixels = scale / density / plane.step;  // of the page, for a millimetre
      const bar = BARS.find((mm) => mm * pixels <= BAR_SHARE * box.width) || BARS[BARS.length - 1];
      element.querySelector(".scale i").style.width = `${bar * pixels}px`;
      element.querySelector(".scale b").textContent = `${bar} mm`;
      panel.output.textContent = panel.name === "rim"
        ? place(data.rim[state.rim].point) : `${side(axisOf(panel.name), state.point[axisOf(panel.name)])}\u00a0mm`;
      canvas.setAttribute("aria-label", `${panel.name} slice, ${panel.output.textContent}`);
      panel.slider.setAttribute("aria-valuetext", panel.output.textContent);
      panel.slider.value = panel.name === "rim" ? state.rim : state.point[axisOf(panel.name)];
    }

    // Where the other two slices cross this one; in the section across the rim a mark at the middle of the rim.
    function cross(panel, context, density) {
      const { plane } = panel, from = add(panel.name === "rim" ? data.rim[state.rim].point : state.point, plane.corner, -1);
      const x = panel.left + panel.scale * (dot(from, plane.right) / plane.step + 0.5);
      const y = panel.top + panel.scale * (dot(from, plane.down) / plane.step + 0.5);
      const far = Math.max(panel.canvas.width, panel.canvas.height), gap = 9 * density;
      context.beginPath();
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        const end = panel.name === "rim" ? 2 * gap : far;
        context.moveTo(x + gap * dx, y + gap * dy);
        context.lineTo(x + end * dx, y + end * dy);
      }
      context.strokeStyle = "rgba(160, 235, 160, 0.55)";
      context.lineWidth = density;
      context.stroke();
    }

    let waiting = false;
    function redraw() {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        panels.forEach(draw);
        root.querySelector(".where").textContent = `Cross at ${place(state.point)}`;
        root.dataset.drawn = 1 + Number(root.dataset.drawn || 0);
      });
    }

    function moveTo(point) {
      const { low, shape } = data.head;
      state.point = point.map((value, k) => Math.min(Math.max(value, low[k]), low[k] + shape[k] - 1));
      document.dispatchEvent(new CustomEvent("pcdiff-point", { detail: { point: state.point, from: root } }));
      redraw();
    }

    for (const panel of panels) {
      if (panel.name === "rim") {
        panel.slider.min = 0;
        panel.slider.max = data.rim.length - 1;
      } else {
        const axis = axisOf(panel.name);
        panel.slider.min = Math.max(data.low[axis], data.head.low[axis]);
        panel.slider.max = Math.min(data.high[axis], data.head.low[axis] + data.head.shape[axis] - 1);
      }
      panel.slider.addEventListener("input", () => {
        if (panel.name === "rim") {
          state.rim = Number(panel.slider.value);
          moveTo(data.rim[state.rim].point);
        } else moveTo(state.point.map((value, k) => k === axisOf(panel.name) ? Number(panel.slider.value) : value));
      });
      panel.canvas.addEventListener("click", (event) => {
        const { plane } = panel, box = panel.canvas.getBoundingClientRect(), density = panel.canvas.width / box.width;
        const x = ((event.clientX - box.left) * density - panel.left) / panel.scale - 0.5;
        const y = ((event.clientY - box.top) * density - panel.top) / panel.scale - 0.5;
        moveTo(add(add(plane.corner, plane.right, x * plane.step), plane.down, y * plane.step));
      });
    }
    root.addEventListener("change", (event) => { if (event.target.dataset.outline) redraw(); });
    document.addEventListener("pcdiff-point", (event) => { if (event.detail.from !== root) moveTo(event.detail.point); });
    root.classList.add("running");
    new ResizeObserver(redraw).observe(root);  // the first call comes at once
  }

  requestAnimationFrame(() => setTimeout(() => document.querySelectorAll(".slices").forEach(start)));
})();
