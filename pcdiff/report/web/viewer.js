// Draws a scene with plotly: one mesh per surface, one marker trace per cloud, and the outlines of the slice.
// Millimetres, LPS: +x is the patient's left, +y posterior, +z superior.
"use strict";
(function () {
  const AXES = ["x", "y", "z"];
  const SLICES = { sagittal: 0, coronal: 1, axial: 2 };
  const VIEWS = {
    front: [0, -1, 0.12], back: [0, 1, 0.12], left: [1, 0, 0.12], right: [-1, 0, 0.12], top: [0, -0.001, 1],
    oblique: [0.62, -0.66, 0.42],
  };
  const DISTANCE = 1.2;
  // In clip coordinates, behind the viewer's left shoulder (z > 1): it does not turn with the head.
  const LIGHT = { x: 0.7, y: -0.9, z: 1.0003 };
  const place = (axis, mm) => `${["RL", "AP", "IS"][axis][mm >= 0 ? 1 : 0]} ${Math.abs(mm).toFixed(0)} mm`;

  function hasWebGL() {
    const canvas = document.createElement("canvas");
    return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
  }

  function numbers(packed) {
    const raw = atob(packed.data), bytes = new Uint8Array(raw.length);
    for (let n = 0; n < raw.length; n++) bytes[n] = raw.charCodeAt(n);
    return new { f4: Float32Array, u2: Uint16Array, u4: Uint32Array }[packed.type](bytes.buffer);
  }

  // Cuts a triangle mesh at a plane: the triangles on one side, and the segments of the outline.
  // from: [a, b, t] for each new vertex, at the fraction t of the edge from vertex a to vertex b.
  function sliced(mesh, slice) {
    const p = mesh.points, f = mesh.faces, count = p.length / 3;
    if (!slice) return { points: p, faces: f, from: null, outline: [] };
    const side = new Float32Array(count), sign = slice.other ? -1 : 1;
    for (let v = 0; v < count; v++) side[v] = sign * (p[3 * v + slice.axis] - slice.at) || 1e-6;
    const points = [], faces = [], from = [], outline = [], made = new Map();
    function between(a, b) {
      const low = Math.min(a, b), key = low * count + Math.max(a, b);
      if (made.has(key)) return made.get(key);
      const t = side[a] / (side[a] - side[b]), at = count + from.length;
      for (let k = 0; k < 3; k++) points.push(p[3 * a + k] + t * (p[3 * b + k] - p[3 * a + k]));
      from.push([a, b, t]);
      made.set(key, at);
      return at;
    }
    for (let n = 0; n < f.length; n += 3) {
      const t = [f[n], f[n + 1], f[n + 2]], below = t.filter((v) => side[v] < 0).length;
      if (below === 3) faces.push(t[0], t[1], t[2]);
      else if (below > 0) {
        const odd = t.findIndex((v) => (side[v] < 0) === (below === 1));
        const a = t[odd], b = t[(odd + 1) % 3], c = t[(odd + 2) % 3], ab = between(a, b), ac = between(a, c);
        if (below === 1) faces.push(a, ab, ac);
        else faces.push(ab, b, c, ab, c, ac);
        outline.push([ab, ac]);
      }
    }
    const all = new Float32Array(p.length + points.length);
    all.set(p);
    all.set(points, p.length);
    return { points: all, faces: faces, from: from, outline: outline };
  }

  function column(points, k) {
    const out = new Float32Array(points.length / 3);
    for (let n = 0; n < out.length; n++) out[n] = points[3 * n + k];
    return out;
  }

  function corners(faces, k) {
    const out = new Uint32Array(faces.length / 3);
    for (let n = 0; n < out.length; n++) out[n] = faces[3 * n + k];
    return out;
  }

  function start(root) {
    if (!hasWebGL()) return;
    root.classList.add("running");
    const scene = JSON.parse(root.querySelector("script").textContent), plot = root.querySelector(".plot");
    const surfaces = scene.surfaces.map((surface) => ({
      ...surface, points: numbers(surface.points), faces: numbers(surface.faces),
      fields: surface.fields.map((field) => ({ ...field, values: numbers(field.values) })),
    }));
    const clouds = scene.clouds.map((cloud) => ({ ...cloud, frames: cloud.frames.map(numbers), frame: 0 }));
    const middle = scene.low.map((low, k) => (low + scene.high[k]) / 2);
    const radius = Math.hypot(...scene.low.map((low, k) => scene.high[k] - low)) / 2;
    const chosen = root.querySelector("[data-control=field]")?.value || null;
    const state = { slice: null, other: false, at: scene.focus.slice(), field: chosen, opacity: 1, point: null, before: null,
      marks: [] };
    const control = (name) => root.querySelector(`[data-control=${name}]`);
    const slice = () => state.slice === null ? null
      : { axis: state.slice, at: state.at[state.slice], other: state.other };

    function meshTrace(surface) {
      const cut = sliced(surface, slice());
      const trace = {
        type: "mesh3d", name: surface.name, hoverinfo: "none", visible: surface.shown, color: surface.colour,
        opacity: surface === surfaces[0] ? state.opacity : 1,
        x: column(cut.points, 0), y: column(cut.points, 1), z: column(cut.points, 2),
        i: corners(cut.faces, 0), j: corners(cut.faces, 1), k: corners(cut.faces, 2),
        lighting: { ambient: 0.36, diffuse: 0.58, specular: 0.1, roughness: 0.6, fresnel: 0.05 },
        lightposition: LIGHT, showscale: false,
      };
      const field = surface.fields.find((f) => f.name === state.field);
      if (field) {
        const values = new Float32Array(cut.points.length / 3);
        values.set(field.values);
        (cut.from || []).forEach(([a, b, t], n) => {
          values[field.values.length + n] = field.values[a] + t * (field.values[b] - field.values[a]);
        });
        const narrow = root.clientWidth < 620;
        Object.assign(trace, {
          intensity: values, meta: { name: field.name, low: field.low }, cmin: field.from, cmax: field.high, colorscale: field.scale, showscale: true,
          colorbar: {
            title: { text: field.title, side: "top", font: { size: 12 } },
            orientation: "h", thickness: 10, len: narrow ? 0.9 : 0.5, x: 0.5, y: 0, yanchor: "bottom",
            tickfont: { size: 11 }, outlinewidth: 0, tickvals: field.ticks.map((tick) => tick[0]),
            ticktext: field.ticks.map((tick) => tick[1]),
          },
        });
      }
      const line = { type: "scatter3d", mode: "lines", name: surface.name + ", cut", hoverinfo: "skip",
        visible: surface.shown && cut.outline.length > 0, line: { color: surface.edge, width: 5 }, x: [], y: [], z: [] };
      for (const [a, b] of cut.outline) {
        AXES.forEach((axis, k) => line[axis].push(cut.points[3 * a + k], cut.points[3 * b + k], null));
      }
      return [trace, line];
    }

    function cloudTrace(cloud) {
      const points = cloud.frames[cloud.frame];
      return { type: "scatter3d", mode: "markers", name: cloud.name, hoverinfo: "skip", visible: cloud.shown,
        x: column(points, 0), y: column(points, 1), z: column(points, 2),
        marker: { size: 2.2, color: cloud.colour, opacity: 1 } };
    }

    // The letters of the patient's sides, 9 mm outside of the scene's bounds.
    function letters() {
      const at = (k, end) => middle.map((m, axis) => axis === k ? (end ? scene.high[k] + 9 : scene.low[k] - 9) : m);
      const ends = [["R", 0, 0], ["L", 0, 1], ["A", 1, 0], ["P", 1, 1], ["I", 2, 0], ["S", 2, 1]];
      const places = ends.map(([, k, end]) => at(k, end));
      return { type: "scatter3d", mode: "text", name: "sides", hoverinfo: "skip", text: ends.map((end) => end[0]),
        textfont: { size: 15, color: "#7a858f" },
        x: places.map((p) => p[0]), y: places.map((p) => p[1]), z: places.map((p) => p[2]) };
    }

    // The point that the slices show, and the two ends of a distance.
    function marks() {
      const dots = (points, color, size, mode) => ({ type: "scatter3d", mode: mode, hoverinfo: "skip", showlegend: false,
        visible: points.length > 0, marker: { size: size, color: color }, line: { color: color, width: 6 },
        x: points.map((p) => p[0]), y: points.map((p) => p[1]), z: points.map((p) => p[2]) });
      return [dots(state.point ? [state.point] : [], "#c0185a", 6, "markers"), dots(state.marks, "#1d2730", 5, "lines+markers")];
    }

    const traces = () => [...surfaces.flatMap(meshTrace), ...clouds.map(cloudTrace), letters(), ...marks()];
    const hidden = { visible: false, showspikes: false };
    const pad = 14, extent = scene.low.map((low, k) => scene.high[k] - low + 2 * pad), longest = Math.max(...extent);
    const axis = (k) => ({ ...hidden, range: [scene.low[k] - pad, scene.high[k] + pad], autorange: false });
    const layout = {
      margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false, paper_bgcolor: "rgba(0,0,0,0)", uirevision: "same",
      font: { family: "inherit" },
      scene: {
        xaxis: axis(0), yaxis: axis(1), zaxis: axis(2), aspectmode: "manual", dragmode: "orbit",
        aspectratio: { x: extent[0] / longest, y: extent[1] / longest, z: extent[2] / longest },
        camera: camera(scene.view), domain: domain(),
      },
    };

    function domain() {
      return { x: [0, 1], y: [state.field ? 0.12 : 0, 1] };  // below it the colour scale
    }

    function camera(view) {
      // In a narrow window the head would be cut off at the sides.
      const away = DISTANCE * Math.max(1, 1.1 * plot.clientHeight / plot.clientWidth) / Math.hypot(...view);
      return { eye: { x: view[0] * away, y: view[1] * away, z: view[2] * away },
        up: { x: 0, y: 0, z: 1 }, center: { x: 0, y: 0, z: 0 } };
    }

    let waiting = false;
    function draw() {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        layout.scene.domain = domain();
        Plotly.react(plot, traces(), layout).then(() => { root.dataset.drawn = 1 + Number(root.dataset.drawn || 0); });
      });
    }

    function viewFrom(view) {
      layout.scene.camera = camera(view);
      Plotly.relayout(plot, { "scene.camera": layout.scene.camera });
    }

    root.addEventListener("change", (event) => {
      const control = event.target, key = control.dataset.control;
      if (key === "surface") surfaces[control.value].shown = control.checked;
      else if (key === "cloud") clouds[control.value].shown = control.checked;
      else if (key === "field") state.field = control.value || null;
      else if (key === "slice") setSlice(control.value);
      else if (key === "other") state.other = control.checked;
      else if (key === "measure") measure(control.checked);
      else return;
      draw();
    });
    root.addEventListener("input", (event) => {
      const control = event.target, key = control.dataset.control;
      if (key === "at" && state.slice !== null) state.at[state.slice] = Number(control.value);
      else if (key === "frame") setFrame(Number(control.value));
      else if (key === "opacity") state.opacity = Number(control.value);
      else return;
      draw();
    });
    root.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-view]");
      if (!button) return;
      if (button.dataset.view === "reset") return reset();
      if (button.dataset.view !== "inside") {
        giveBack();
        return viewFrom(VIEWS[button.dataset.view]);
      }
      // From inside: the half of the head in front of the implant is cut away, until another view is chosen.
      const out = scene.outward, k = out.map(Math.abs).indexOf(Math.max(...out.map(Math.abs)));
      state.before ||= { slice: control("slice").value, at: state.at.slice(), other: state.other };
      showCut(Object.keys(SLICES).find((name) => SLICES[name] === k), Object.assign(state.at.slice(), { [k]: middle[k] }), out[k] > 0);
      viewFrom(out.map((value, n) => -value + (n === (k + 1) % 3 ? 0.15 : 0)));
    });

    function showCut(name, at, other) {
      state.at = at;
      state.other = control("other").checked = other;
      control("slice").value = name;
      setSlice(name);
      draw();
    }

    function giveBack() {
      if (state.before) showCut(state.before.slice, state.before.at, state.before.other);
      state.before = null;
    }

    function reset() {
      state.before = null;
      state.opacity = 1;
      if (control("opacity")) control("opacity").value = 1;
      state.field = chosen;
      if (control("field")) control("field").value = chosen || "";
      scene.surfaces.forEach((surface, n) => {
        surfaces[n].shown = root.querySelector(`[data-control=surface][value="${n}"]`).checked = surface.shown;
      });
      control("measure").checked = false;
      measure(false);
      showCut("off", scene.focus.slice(), false);
      viewFrom(scene.view);
    }

    function measure(on) {
      state.measuring = on;
      state.marks = [];
      tell(on ? "Click two places on the surfaces." : "");
      draw();
    }

    function tell(text) {
      root.querySelector(".told").textContent = text;
    }

    // The place under the pointer, a distance, and the point that the slices show.
    function listen() {
      plot.on("plotly_hover", (event) => {
        const { x, y, z, data, pointNumber } = event.points[0], value = data.intensity?.[pointNumber];
        const field = value === undefined || value < data.meta.low ? "" : `; ${data.meta.name} ${value.toFixed(1)} mm`;
        if (!state.measuring) tell([x, y, z].map((mm, k) => place(k, mm)).join(", ") + field);
      });
      plot.on("plotly_click", (event) => {
        const { x, y, z } = event.points[0], point = [x, y, z];
        if (!state.measuring) {
          state.point = point;
          document.dispatchEvent(new CustomEvent("pcdiff-point", { detail: { point: point, from: root } }));
          return draw();
        }
        state.marks = [...state.marks, point].slice(-2);
        if (state.marks.length === 2) {
          const [a, b] = state.marks;
          tell(`${Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]).toFixed(1)} mm in a straight line`);
        }
        draw();
      });
      document.addEventListener("pcdiff-point", (event) => {
        if (event.detail.from === root) return;
        state.point = event.detail.point;
        draw();
      });
      // A wheel scrolls the page, unless the view was clicked or Ctrl is held.
      let active = false;
      plot.addEventListener("pointerdown", () => { active = true; }, true);
      plot.addEventListener("pointerleave", () => { active = false; });
      plot.addEventListener("wheel", (event) => { if (!active && !event.ctrlKey) event.stopImmediatePropagation(); },
        { capture: true, passive: true });
    }

    function setSlice(name) {
      state.slice = name in SLICES ? SLICES[name] : null;
      const slider = root.querySelector("[data-control=at]");
      root.querySelector(".slicing").hidden = state.slice === null;
      if (state.slice === null) return;
      slider.min = Math.floor(scene.low[state.slice]);
      slider.max = Math.ceil(scene.high[state.slice]);
      slider.value = state.at[state.slice];
    }

    function setFrame(frame) {
      for (const cloud of clouds) cloud.frame = Math.min(frame, cloud.frames.length - 1);
      const moving = clouds.find((cloud) => cloud.frames.length > 1);
      root.querySelector(".caption").textContent = moving.captions[moving.frame];
      for (const cloud of clouds) if (cloud.frames.length > 1 && !clouds.some((c) => c.frames.length > 1 && c.shown)) {
        cloud.shown = true;
        root.querySelector(`[data-control=cloud][value="${clouds.indexOf(cloud)}"]`).checked = true;
      }
    }

    Plotly.newPlot(plot, traces(), layout, { responsive: true, displaylogo: false, displayModeBar: false,
      scrollZoom: true }).then(() => { listen(); root.dataset.drawn = 1; });
  }

  // The page's text is shown first, then the 3D view is drawn.
  requestAnimationFrame(() => setTimeout(() => document.querySelectorAll(".scene").forEach(start)));
})();
