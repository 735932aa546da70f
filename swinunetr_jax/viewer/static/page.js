// The page's behaviour: NiiVue draws, and this file holds the state, the controls and the keys.
"use strict";
(() => {
  const page = JSON.parse(document.getElementById("description").textContent);
  const $ = (id) => document.getElementById(id);
  const HIDDEN = -1;
  const FAINT = 0.15; // opacity inside of outlines
  const LABEL_INTENT = 1002; // of NIfTI
  const VIEWS = [3, 0, 1, 2, 4]; // NiiVue's numbers for slices with 3-D, axial, coronal, sagittal and 3-D
  const state = { channel: 0, map: page.maps.length ? 0 : HIDDEN, lastMap: 0, opacity: 0.6, outlines: false, beside: false, view: 3 };
  const windows = page.channels.map((channel) => [...channel.shown]);
  const invisible = page.maps.map(() => new Set()); // codes of labels that the legend has switched off
  const images = new Map(); // NiiVue's images by the identifiers of the page's arrays
  let views = [];

  function fail(sentence) {
    $("message").textContent = sentence;
    $("message").hidden = false;
    document.documentElement.dataset.state = "failed";
  }

  // Images

  function labelColours(number) {
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: ["background"] };
    for (const label of page.maps[number].labels.filter((label) => label.code)) {
      const [red, green, blue] = [1, 3, 5].map((start) => parseInt(label.colour.slice(start, start + 2), 16));
      table.R.push(red);
      table.G.push(green);
      table.B.push(blue);
      table.A.push(invisible[number].has(label.code) ? 0 : 255);
      table.I.push(label.code);
      table.labels.push(label.name);
    }
    return table;
  }

  async function image(id) {
    if (!images.has(id)) {
      const [kind, text] = id.split("-");
      const number = Number(text);
      const options = { base64: $(id).textContent, name: `${id}.nii.gz` };
      if (kind === "channel") {
        const [low, high] = windows[number];
        Object.assign(options, { colormap: "gray", cal_min: low, cal_max: high });
      }
      const loaded = await niivue.NVImage.loadFromBase64(options);
      if (kind === "map") loaded.setColormapLabel(labelColours(number));
      images.set(id, loaded);
    }
    return images.get(id);
  }

  // Views: a canvas for the chosen segmentation, or one for each of them

  async function buildViews() {
    for (const view of views) view.element.remove();
    views = [];
    const numbers = state.beside ? page.maps.map((_, number) => number) : [null];
    const columns = numbers.length === 4 ? 2 : Math.min(numbers.length, 3);
    $("views").style.setProperty("--columns", columns);
    for (const map of numbers) {
      const element = document.createElement("div");
      element.className = "view";
      element.append(document.createElement("canvas"));
      if (map !== null) {
        const name = document.createElement("div");
        name.className = "name";
        name.textContent = page.maps[map].name;
        element.append(name);
      }
      $("views").append(element);
      const nv = new niivue.Niivue({
        isRadiologicalConvention: true,
        multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
        multiplanarLayout: numbers.length > 1 ? niivue.MULTIPLANAR_TYPE.AUTO : niivue.MULTIPLANAR_TYPE.GRID,
        dragAndDropEnabled: false,
        show3Dcrosshair: true,
        crosshairColor: [1, 1, 0.2, 0.6],
        fontColor: [0.8, 0.8, 0.8, 1],
        isNearestInterpolation: true,
        logLevel: "error",
        showAllOrientationMarkers: true,
        multiplanarPadPixels: 12,
      });
      await nv.attachToCanvas(element.firstChild, false);
      views.push({ nv, element, map });
    }
    for (const view of views) {
      view.nv.broadcastTo(views.filter((other) => other !== view).map((other) => other.nv), { "3d": true });
      view.nv.onLocationChange = (location) => moved(view, location);
      view.nv.onIntensityChange = (volume) => adopt(volume);
    }
    await refresh();
  }

  let fraction = null; // the cross, as fractions of the scan's box

  async function refresh() {
    const channel = await image(`channel-${state.channel}`);
    [channel.cal_min, channel.cal_max] = windows[state.channel];
    channel.opacity = 1;
    for (const { nv, map } of views) {
      const number = map === null ? state.map : map;
      const volumes = [channel];
      if (number !== HIDDEN && !(map !== null && state.map === HIDDEN)) {
        const labels = await image(`map-${number}`);
        labels.setColormapLabel(labelColours(number));
        labels.opacity = state.outlines ? FAINT * state.opacity : state.opacity;
        labels.hdr.intent_code = state.outlines ? LABEL_INTENT : 0; // NiiVue outlines only images with this intent
        volumes.push(labels);
      }
      nv.opts.atlasOutline = state.outlines ? state.opacity : 0;
      nv.opts.sliceType = state.view;
      if (!nv.volumes.length) nv.addVolume(channel);
      nv.volumes = volumes;
      [nv.back, ...nv.overlays] = volumes;
      if (fraction === null) fraction = nv.vox2frac(toRas(channel, page.start));
      nv.scene.crosshairPos = [...fraction];
      nv.updateGLVolume();
    }
    views[0]?.nv.createOnLocationChange();
    showControls();
  }

  // NiiVue counts voxels along axes that point to the right, the front and the top.
  function toRas(volume, voxel) {
    return [0, 1, 2].map((axis) => {
      const own = Math.abs(volume.permRAS[axis]) - 1;
      const last = volume.hdr.dims[own + 1] - 1;
      return volume.permRAS[axis] < 0 ? last - voxel[own] : voxel[own];
    });
  }

  function fromRas(volume, voxel) {
    const own = [0, 0, 0];
    volume.permRAS.slice(0, 3).forEach((code, axis) => {
      const index = Math.abs(code) - 1;
      own[index] = code < 0 ? volume.hdr.dims[index + 1] - 1 - voxel[axis] : voxel[axis];
    });
    return own;
  }

  function moved(view, location) {
    fraction = [...location.frac];
    for (const other of views.filter((other) => other !== view)) {
      other.nv.scene.crosshairPos = [...fraction];
      other.nv.drawScene();
    }
    showPlace(view.nv, location);
  }

  const rounded = (value) => (Math.abs(value) >= 1000 || Number.isInteger(value) ? value.toFixed(0) : Number(value.toPrecision(4)).toString());

  async function showPlace(nv, location) {
    const volume = nv.volumes[0];
    const voxel = fromRas(volume, location.vox.map(Math.round));
    const lines = [`voxel ${voxel.join(", ")}: ${page.channels[state.channel].name} ${rounded(location.values[0].value)}`];
    for (const [number, map] of page.maps.entries()) {
      const loaded = images.get(`map-${number}`);
      if (!loaded) continue;
      const code = loaded.getValue(...location.vox.map(Math.round));
      const label = map.labels.find((label) => label.code === code);
      lines.push(`${map.name}: ${code && label ? label.name : "none"}`);
    }
    $("where").replaceChildren(...lines.flatMap((line) => [document.createTextNode(line), document.createElement("br")]));
  }

  // Controls

  function choices(box, names, choose, chosen) {
    box.replaceChildren(
      ...names.map((name, number) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = name;
        button.setAttribute("aria-pressed", String(number === chosen()));
        button.onclick = () => choose(number);
        return button;
      }),
    );
  }

  function showControls() {
    const channel = page.channels[state.channel];
    $("channels").hidden = page.channels.length < 2;
    $("maps").hidden = $("drawing").querySelector(".wide").hidden = !page.maps.length;
    $("beside").hidden = page.maps.length < 2;
    choices($("channels").querySelector(".choices"), page.channels.map((c) => c.name), chooseChannel, () => state.channel);
    const names = [...page.maps.map((map) => map.name), "none"];
    const chosen = () => (state.map === HIDDEN ? page.maps.length : state.beside ? null : state.map);
    choices($("maps").querySelector(".choices"), names, chooseOneMap, chosen);
    [$("low").value, $("high").value] = windows[state.channel].map((value) => Number(value.toPrecision(4)));
    $("range").textContent = `${channel.name} has ${rounded(channel.range[0])} … ${rounded(channel.range[1])} in the scan.`;
    $("opacity").value = state.opacity;
    $("outlines").checked = state.outlines;
    $("outlines").parentElement.hidden = !page.maps.length;
    $("side-by-side").checked = state.beside;
    $("view").value = state.view;
    showLegends();
  }

  const millilitres = (ml) => `${ml.toFixed(ml < 10 ? 2 : 1)} ml`;

  function showLegends() {
    const shown = state.map === HIDDEN ? [] : state.beside ? page.maps.keys() : [state.map];
    $("legends").replaceChildren(...[...shown].map(legend));
  }

  function legend(number) {
    const map = page.maps[number];
    const table = document.createElement("table");
    table.className = "legend";
    table.createCaption().textContent = map.name;
    for (const label of map.labels) {
      const row = table.insertRow();
      row.className = label.ml ? "" : "absent";
      const text = document.createElement("label");
      const box = document.createElement("input");
      Object.assign(box, { type: "checkbox", checked: !invisible[number].has(label.code), disabled: !label.code });
      box.onchange = () => {
        invisible[number][box.checked ? "delete" : "add"](label.code);
        refresh();
      };
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = label.colour;
      text.append(box, swatch, label.value === null || label.name === `label ${label.value}` ? label.name : `${label.name} (${label.value})`);
      row.insertCell().append(text);
      const volume = row.insertCell();
      volume.className = "ml";
      volume.textContent = millilitres(label.ml);
    }
    for (const region of map.regions) {
      const row = table.insertRow();
      row.insertCell().textContent = `region ${region.name} (${region.values.join(" + ")})`;
      const volume = row.insertCell();
      volume.className = "ml";
      volume.textContent = millilitres(region.ml);
    }
    return table;
  }

  function chooseChannel(number) {
    state.channel = number;
    return refresh();
  }

  function chooseMap(number) {
    state.map = number >= page.maps.length ? HIDDEN : number;
    if (state.map !== HIDDEN) state.lastMap = state.map;
    return refresh();
  }

  // A choice of one segmentation ends the view of all of them.
  function chooseOneMap(number) {
    if (!state.beside || number >= page.maps.length) return chooseMap(number);
    state.map = state.lastMap = number;
    return setBeside(false);
  }

  function chooseView(number) {
    state.view = number;
    return refresh();
  }

  function setOpacity(value) {
    state.opacity = Math.min(1, Math.max(0, value));
    return refresh();
  }

  function setBeside(value) {
    if (page.maps.length < 2) return Promise.resolve();
    state.beside = value;
    return buildViews();
  }

  function setOutlines(value) {
    state.outlines = value;
    return refresh();
  }

  function setWindow(low, high) {
    if (low < high) windows[state.channel] = [low, high];
    return refresh();
  }

  function adopt(volume) {
    if (volume !== images.get(`channel-${state.channel}`)) return;
    windows[state.channel] = [volume.cal_min, volume.cal_max];
    refresh();
  }

  function reset() {
    windows[state.channel] = [...page.channels[state.channel].shown];
    fraction = null;
    Object.assign(state, { opacity: 0.6, outlines: false, view: 3 });
    for (const { nv } of views) {
      nv.setPan2Dxyzmm([0, 0, 0, 1]);
      nv.setRenderAzimuthElevation(110, 10);
      nv.setScale(1);
    }
    return refresh();
  }

  const next = (list, item) => list[(list.indexOf(item) + 1) % list.length];
  const move = (x, y, z) => () => views[0].nv.moveCrosshairInVox(x, y, z);
  // The patient's right is on the left of the screen.
  const KEYS = {
    ArrowLeft: move(1, 0, 0),
    ArrowRight: move(-1, 0, 0),
    ArrowUp: move(0, 1, 0),
    ArrowDown: move(0, -1, 0),
    PageUp: move(0, 0, 1),
    PageDown: move(0, 0, -1),
    ".": move(0, 0, 1),
    ",": move(0, 0, -1),
    c: () => chooseChannel((state.channel + 1) % page.channels.length),
    v: () => chooseView(next(VIEWS, state.view)),
    o: () => setOutlines(!state.outlines),
    b: () => setBeside(!state.beside),
    r: reset,
    "+": () => setOpacity(state.opacity + 0.1),
    "=": () => setOpacity(state.opacity + 0.1),
    "-": () => setOpacity(state.opacity - 0.1),
    " ": () => chooseMap(state.map === HIDDEN && page.maps.length ? state.lastMap : page.maps.length),
    0: () => KEYS[" "](),
  };

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, summary")) return;
    const digit = Number(event.key);
    const action = digit >= 1 && digit <= page.maps.length ? () => chooseOneMap(digit - 1) : KEYS[event.key];
    if (event.target.closest("#views")) event.stopImmediatePropagation(); // NiiVue has keys of its own
    if (!action || (event.key === " " && event.target.closest("button"))) return;
    event.preventDefault();
    action();
  }

  function listen() {
    $("low").onchange = $("high").onchange = () => setWindow(Number($("low").value), Number($("high").value));
    $("reset").onclick = reset;
    $("opacity").oninput = () => setOpacity(Number($("opacity").value));
    $("outlines").onchange = () => setOutlines($("outlines").checked);
    $("side-by-side").onchange = () => setBeside($("side-by-side").checked);
    $("view").onchange = () => chooseView(Number($("view").value));
    window.addEventListener("keydown", onKey, true);
  }

  function footer() {
    const coarse = page.channels.filter((channel) => channel.step);
    const sentences = ["This page contains the scan: pass it on as carefully as the scan itself. It needs no network."];
    if (coarse.length) {
      const steps = coarse.map((channel) => `${channel.name} to steps of ${rounded(channel.step)}`).join(", ");
      sentences.push(`Intensities are rounded for display (${steps}); the range above is that of the scan.`);
    }
    if (coarse.some((channel) => channel.clipped)) sentences.push("The few voxels beyond the steps are shown as the last step.");
    if (page.maps.length) sentences.push("Label maps are exact.");
    sentences.push(`Made by swinunetr_jax ${page.version}, software for research, not a medical device. The viewer is NiiVue (BSD-2-Clause).`);
    $("footer").textContent = sentences.join(" ");
  }

  async function start() {
    $("grid").textContent = page.grid;
    footer();
    const gl = document.createElement("canvas").getContext("webgl2");
    if (!gl) {
      fail("This browser offers no WebGL2, which the viewer needs: turn hardware acceleration on, or open the page in another browser.");
      return;
    }
    const limit = gl.getParameter(gl.MAX_3D_TEXTURE_SIZE);
    gl.getExtension("WEBGL_lose_context")?.loseContext();
    if (Math.max(...page.shape) > limit) {
      fail(`This browser shows at most ${limit} voxels along an axis, and the scan has ${Math.max(...page.shape)}.`);
      return;
    }
    listen();
    await buildViews();
    document.documentElement.dataset.state = "ready";
  }

  window.viewer = { page, state, windows, views: () => views, toRas };
  start().catch((error) => fail(`The scan could not be drawn (${error.message || error}).`));
})();
