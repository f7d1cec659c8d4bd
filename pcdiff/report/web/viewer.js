// Draws a scene with three.js: the outside of each surface, what a slice cuts through, and points.
// Millimetres, LPS: +x is the patient's left, +y posterior, +z superior.
"use strict";
(function () {
  const AXES = { sagittal: 0, coronal: 1, axial: 2 };
  const VIEWS = {
    front: [0, -1, 0.12], back: [0, 1, 0.12], left: [1, 0, 0.12], right: [-1, 0, 0.12], top: [0, 0, 1],
    oblique: [0.62, -0.66, 0.42],
  };
  const FIELD_OF_VIEW = 30, NEAR = 0.72;  // degrees; share of the distance from which the whole sphere around is seen
  const LIGHT = [-0.6, 0.7, 0.9];  // right, up and towards the viewer: it does not turn with the head
  const LETTER_MM = 10, LETTERS_AWAY_MM = 12, DOT_MM = 1.6, ROD_MM = 0.5;
  const CLICK = 4;  // pixels that the pointer may move between down and up
  const place = (axis, mm) => `${["RL", "AP", "IS"][axis][mm >= 0 ? 1 : 0]} ${Math.abs(mm).toFixed(0)}\u00a0mm`;

  function supported() {
    const canvas = document.createElement("canvas");
    return "DecompressionStream" in window && Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
  }

  // Rows of numbers from `_packed` in `report/viewer.py`: (rows, columns), flat.
  async function numbers({ data, columns, low, step }) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const whole = new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")));
    const changes = new Uint16Array(await whole.arrayBuffer()), rows = changes.length / columns;
    const out = new Float32Array(changes.length);
    for (let column = 0; column < columns; column++) {
      for (let row = 0, at = 0; row < rows; row++) {
        at = (at + changes[column * rows + row]) & 0xffff;
        out[row * columns + column] = low + step * at;
      }
    }
    return out;
  }

  // The colour at a share of a scale: [share, colour] in ascending order.
  function colourAt(stops, share) {
    const above = stops.findIndex(([at]) => at >= share), [end, colour] = stops[above < 0 ? stops.length - 1 : above];
    if (above <= 0) return colour;
    const [start, before] = stops[above - 1];
    return before.clone().lerp(colour, (share - start) / (end - start || 1));
  }

  async function start(root) {
    if (!supported()) return;
    const data = JSON.parse(root.querySelector("script").textContent), plot = root.querySelector(".plot");
    const surfaces = await Promise.all(data.surfaces.map(read));
    const clouds = await Promise.all(data.clouds.map(async (cloud) => ({
      ...cloud, frames: await Promise.all(cloud.frames.map(numbers)), frame: 0,
      points: new THREE.Points(new THREE.BufferGeometry(),
        new THREE.PointsMaterial({ color: cloud.colour, size: 4, sizeAttenuation: false })),
    })));
    root.classList.add("running");
    const middle = data.low.map((low, k) => (low + data.high[k]) / 2);
    const radius = Math.hypot(...data.low.map((low, k) => data.high[k] - low)) / 2;
    const control = (name) => root.querySelector(`[data-control=${name}]`);
    const chosen = control("field")?.value || "";
    const state = { slice: null, other: false, at: data.focus.slice(), field: chosen, opacity: 1, point: null, before: null,
      marks: [] };

    const scene = new THREE.Scene(), plane = new THREE.Plane(), marks = new THREE.Group();
    const camera = new THREE.PerspectiveCamera(FIELD_OF_VIEW, 1, radius / 20, 20 * radius);
    const renderer = new THREE.WebGLRenderer({ antialias: true, alpha: true });
    renderer.localClippingEnabled = true;
    renderer.setPixelRatio(window.devicePixelRatio);
    plot.append(renderer.domElement);
    const controls = new THREE.TrackballControls(camera, renderer.domElement);
    Object.assign(controls, { rotateSpeed: 2.5, staticMoving: true, keys: ["", "", ""], minDistance: radius / 4, maxDistance: 12 * radius });
    const light = new THREE.DirectionalLight("#fff", 0.55);
    light.position.set(...LIGHT);
    camera.add(light, light.target);
    scene.add(camera, new THREE.AmbientLight("#fff", 0.4), marks, ...letters());
    for (const { outside, within, nearest } of surfaces) scene.add(nearest, outside, within);
    for (const { points } of clouds) scene.add(points);

    async function read(surface) {
      const [points, normals, faces] = await Promise.all([surface.points, surface.normals, surface.faces].map(numbers));
      const geometry = new THREE.BufferGeometry();
      geometry.setAttribute("position", new THREE.BufferAttribute(points, 3));
      geometry.setAttribute("normal", new THREE.BufferAttribute(normals, 3));
      geometry.setIndex(new THREE.BufferAttribute(Uint16Array.from(faces), 1));
      const fields = await Promise.all(surface.fields.map(async (field) => {
        const stops = field.scale.map(([share, colour]) => [share, new THREE.Color(colour)]);
        return { ...field, stops, values: await numbers(field.values) };
      }));
      return {
        ...surface, fields,
        outside: new THREE.Mesh(geometry, new THREE.MeshPhongMaterial({ specular: "#141414", shininess: 18 })),
        // Where a slice opens a solid, its inside is seen: in one colour it looks as if it were filled.
        within: new THREE.Mesh(geometry, new THREE.MeshBasicMaterial({ color: surface.edge, side: THREE.BackSide })),
        // Of a transparent surface what is nearest is drawn: this one leaves its depth only.
        nearest: new THREE.Mesh(geometry, new THREE.MeshBasicMaterial({ colorWrite: false, transparent: true })),
        // For the pointer: both sides.
        both: new THREE.Mesh(geometry, new THREE.MeshBasicMaterial({ side: THREE.DoubleSide })),
      };
    }

    // The letters of the patient's sides, outside of the scene's bounds.
    function letters() {
      return ["RL", "AP", "IS"].flatMap((pair, axis) => [...pair].map((letter, end) => {
        const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
        canvas.width = canvas.height = 64;
        Object.assign(context, { font: "600 48px sans-serif", fillStyle: "#5b6873", textAlign: "center", textBaseline: "middle" });
        context.fillText(letter, 32, 34);
        const sprite = new THREE.Sprite(new THREE.SpriteMaterial({ map: new THREE.CanvasTexture(canvas), depthWrite: false }));
        sprite.position.set(...middle).setComponent(axis, (end ? data.high : data.low)[axis] + (end ? 1 : -1) * LETTERS_AWAY_MM);
        sprite.scale.setScalar(LETTER_MM);
        return sprite;
      }));
    }

    // The point that the slices show, and the two ends of a distance.
    function markAll() {
      marks.clear();
      const dot = (point, color) => {
        const mesh = new THREE.Mesh(new THREE.SphereGeometry(DOT_MM), new THREE.MeshBasicMaterial({ color }));
        mesh.position.set(...point);
        marks.add(mesh);
      };
      if (state.point) dot(state.point, "#c0185a");
      for (const mark of state.marks) dot(mark, "#1d2730");
      if (state.marks.length < 2) return;
      const [a, b] = state.marks.map((mark) => new THREE.Vector3(...mark)), along = b.clone().sub(a);
      const rod = new THREE.Mesh(new THREE.CylinderGeometry(ROD_MM, ROD_MM, along.length()),
        new THREE.MeshBasicMaterial({ color: "#1d2730", depthTest: false }));  // it may lie within bone
      rod.position.copy(a).lerp(b, 0.5);
      rod.quaternion.setFromUnitVectors(new THREE.Vector3(0, 1, 0), along.normalize());
      rod.renderOrder = 2;
      marks.add(rod);
    }

    function apply(surface) {
      const { outside, within, nearest, colour, fields, shown } = surface, opacity = surface === surfaces[0] ? state.opacity : 1;
      const field = fields.find(({ name }) => name === state.field), planes = state.slice === null ? [] : [plane];
      outside.visible = shown;
      within.visible = shown && opacity === 1 && planes.length > 0;
      nearest.visible = shown && opacity < 1;
      for (const { material } of [outside, within, nearest]) material.clippingPlanes = planes;
      outside.renderOrder = opacity < 1 ? 1 : 0;  // after `nearest`
      const { material } = outside, vertexColors = Boolean(field), transparent = opacity < 1;
      if (material.vertexColors !== vertexColors || material.transparent !== transparent) material.needsUpdate = true;
      Object.assign(material, { opacity, vertexColors, transparent });
      material.color.set(field ? "#fff" : colour);
      if (field && surface.painted !== field.name) {
        const colours = new Float32Array(3 * field.values.length);
        field.values.forEach((value, n) => {
          colourAt(field.stops, (value - field.from) / (field.high - field.from)).toArray(colours, 3 * n);
        });
        outside.geometry.setAttribute("color", new THREE.BufferAttribute(colours, 3));
        surface.painted = field.name;
      }
    }

    // The colour scale below the view.
    function showScale() {
      const field = surfaces.flatMap(({ fields }) => fields).find(({ name }) => name === state.field);
      const box = root.querySelector(".legend");
      box.hidden = !field;
      if (!field) return;
      const share = (value) => 100 * (value - field.from) / (field.high - field.from);
      box.querySelector("b").textContent = field.title;
      box.querySelector(".ramp").style.background =
        `linear-gradient(to right, ${field.scale.map(([at, colour]) => `${colour} ${100 * at}%`).join(", ")})`;
      box.querySelector(".ticks").replaceChildren(...field.ticks.map(([value, text]) => {
        const tick = document.createElement("span"), at = share(value);
        tick.textContent = text;
        tick.style.left = `${at}%`;
        tick.style.transform = `translateX(${-Math.min(Math.max(at, 0), 100)}%)`;  // the first and the last stay within
        return tick;
      }));
    }

    let waiting = false;
    function draw() {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        const sign = state.other ? -1 : 1;
        if (state.slice !== null) {
          plane.normal.set(0, 0, 0).setComponent(state.slice, -sign);
          plane.constant = sign * state.at[state.slice];
        }
        surfaces.forEach(apply);
        for (const cloud of clouds) {
          cloud.points.visible = cloud.shown;
          if (cloud.drawn === cloud.frame) continue;
          cloud.points.geometry.setAttribute("position", new THREE.BufferAttribute(cloud.frames[cloud.frame], 3));
          cloud.points.geometry.computeBoundingSphere();
          cloud.drawn = cloud.frame;
        }
        markAll();
        showScale();
        renderer.render(scene, camera);
        root.dataset.drawn = 1 + Number(root.dataset.drawn || 0);
      });
    }

    function viewFrom(view) {
      // In a narrow window the head would be cut off at the sides.
      const away = NEAR * radius / Math.sin(FIELD_OF_VIEW * Math.PI / 360) * Math.max(1, 1 / camera.aspect) / Math.hypot(...view);
      controls.target.set(...middle);
      camera.position.set(...view).multiplyScalar(away).add(controls.target);
      // Seen from above, the forehead is up.
      camera.up.set(...(view[0] || view[1] ? [0, 0, 1] : [0, -1, 0]));
      controls.update();
      draw();
    }

    root.addEventListener("change", (event) => {
      const control = event.target, key = control.dataset.control;
      if (key === "surface") surfaces[control.value].shown = control.checked;
      else if (key === "cloud") clouds[control.value].shown = control.checked;
      else if (key === "field") state.field = control.value;
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
      const out = data.outward, k = out.map(Math.abs).indexOf(Math.max(...out.map(Math.abs)));
      state.before ||= { slice: control("slice").value, at: state.at.slice(), other: state.other };
      showCut(Object.keys(AXES).find((name) => AXES[name] === k), Object.assign(state.at.slice(), { [k]: middle[k] }), out[k] > 0);
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
      state.opacity = control("opacity").value = 1;
      state.field = chosen;
      if (control("field")) control("field").value = chosen;
      data.surfaces.forEach((surface, n) => {
        surfaces[n].shown = root.querySelector(`[data-control=surface][value="${n}"]`).checked = surface.shown;
      });
      control("measure").checked = false;
      measure(false);
      showCut("off", data.focus.slice(), false);
      viewFrom(data.view);
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

    // What the pointer is on: a point of a surface, (3,) mm, and what the field is there; or null.
    function under(event) {
      const box = plot.getBoundingClientRect(), caster = new THREE.Raycaster();
      caster.setFromCamera({ x: 2 * (event.clientX - box.left) / box.width - 1, y: 1 - 2 * (event.clientY - box.top) / box.height }, camera);
      const shown = surfaces.filter((surface) => surface.shown), cut = state.slice !== null;
      const [hit] = caster.intersectObjects(shown.map(({ both }) => both), false)
        .filter(({ point }) => !cut || plane.distanceToPoint(point) >= 0);
      if (!hit) return null;
      const { a, b, c, normal } = hit.face;
      if (cut && normal.dot(caster.ray.direction) > 0) {  // the slice itself
        const point = caster.ray.intersectPlane(plane, new THREE.Vector3());
        return { point: (point || hit.point).toArray(), text: "" };
      }
      const field = shown.find(({ both }) => both === hit.object).fields.find(({ name }) => name === state.field);
      if (!field) return { point: hit.point.toArray(), text: "" };
      const corners = [a, b, c].map((n) => new THREE.Vector3().fromBufferAttribute(hit.object.geometry.attributes.position, n));
      const weights = THREE.Triangle.getBarycoord(hit.point, ...corners, new THREE.Vector3()).toArray();
      const values = [a, b, c].map((n) => field.values[n]);
      const value = values.reduce((sum, each, n) => sum + weights[n] * each, 0);
      const text = Math.min(...values) < field.low ? "" : `; ${field.name} ${value.toFixed(1)}\u00a0mm`;
      return { point: hit.point.toArray(), text };
    }

    // The place under the pointer, a distance, and the point that the slices show.
    function listen() {
      let down = null, looking = null;
      plot.addEventListener("pointermove", (event) => {
        controls.update();
        if (event.buttons || state.measuring || event.pointerType === "touch") return;
        if (looking === null) {
          requestAnimationFrame(() => {
            const found = under(looking);
            looking = null;
            tell(found ? found.point.map((mm, k) => place(k, mm)).join(", ") + found.text : "");
          });
        }
        looking = event;
      });
      plot.addEventListener("click", (event) => {
        if (!down || Math.hypot(event.clientX - down[0], event.clientY - down[1]) > CLICK) return;
        const found = under(event);
        if (!found) return;
        if (!state.measuring) {
          state.point = found.point;
          document.dispatchEvent(new CustomEvent("pcdiff-point", { detail: { point: found.point, from: root } }));
          if (event.pointerType === "touch") tell(found.point.map((mm, k) => place(k, mm)).join(", ") + found.text);
          return draw();
        }
        state.marks = [...state.marks, found.point].slice(-2);
        if (state.marks.length === 2) {
          const [a, b] = state.marks;
          tell(`${Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]).toFixed(1)}\u00a0mm in a straight line`);
        }
        draw();
      });
      document.addEventListener("pcdiff-point", (event) => {
        if (event.detail.from === root) return;
        state.point = event.detail.point;
        draw();
      });
      controls.addEventListener("change", draw);
      // A wheel scrolls the page, unless the view was clicked or Ctrl is held.
      let active = false;
      plot.addEventListener("pointerdown", (event) => { active = true; down = [event.clientX, event.clientY]; }, true);
      plot.addEventListener("pointerleave", () => { active = false; });
      plot.addEventListener("wheel", (event) => { if (!active && !event.ctrlKey) event.stopPropagation(); },
        { capture: true, passive: true });
      plot.addEventListener("wheel", () => controls.update());
    }

    function setSlice(name) {
      state.slice = name in AXES ? AXES[name] : null;
      const slider = control("at");
      root.querySelector(".slicing").hidden = state.slice === null;
      if (state.slice === null) return;
      slider.min = Math.floor(data.low[state.slice]);
      slider.max = Math.ceil(data.high[state.slice]);
      slider.value = state.at[state.slice];
    }

    function setFrame(frame) {
      for (const cloud of clouds) cloud.frame = Math.min(frame, cloud.frames.length - 1);
      const moving = clouds.filter((cloud) => cloud.frames.length > 1);
      root.querySelector(".caption").textContent = moving[0].captions[moving[0].frame];
      if (moving.some((cloud) => cloud.shown)) return;
      for (const cloud of moving) {
        cloud.shown = root.querySelector(`[data-control=cloud][value="${clouds.indexOf(cloud)}"]`).checked = true;
      }
    }

    let placed = false;
    new ResizeObserver(() => {  // the first call comes at once
      if (!plot.clientWidth) return;
      camera.aspect = plot.clientWidth / plot.clientHeight;
      camera.updateProjectionMatrix();
      renderer.setSize(plot.clientWidth, plot.clientHeight);
      controls.handleResize();
      if (!placed) viewFrom(data.view);
      placed = true;
      draw();
    }).observe(plot);
    listen();
  }

  // The page's text is shown first, then the 3D view is drawn.
  requestAnimationFrame(() => setTimeout(() => document.querySelectorAll(".scene").forEach(start)));
})();
