// Draws a chart where it stands on a page.
//
// `chart_html` (module talking_heads.base.vega) writes this file and a call of `showChart` into a script element behind
// the `div` of the chart, once for every chart of a page. Therefore:
// - there is nothing to build or to import, and the script element has a scope of its own around this file;
// - lines that hold nothing but a comment are left out on the page, so no string may run over several lines;
// - the end tag of a script element must not occur, not even in a string.
//
// The host is the `div` of a chart. Its first child, the view, shows the text alternative until the chart is drawn;
// its second child holds the controls of the chart (menus and sliders).
//
// A chart is an object:
//   spec       Vega-Lite specification with its data inside
//   id         id of its hosts; a page may show the same chart twice
//   said       text alternative
//   inks       colours of text: `either` is the grey in the spec, `light` and `dark` replace it, by the page's colours
//   libraries  addresses of Vega, Vega-Lite and vega-embed, for a page that has none
//   family     fonts, as in CSS

// ---------------------------------------------------------------------------------------------------------- Colours

// Is the page dark behind `element`? A site says so on its body. Otherwise the colour that is really there decides,
// because a reader may prefer dark pages and still be looking at a white one.
const isDark = element => {
  const body = document.body, root = document.documentElement
  if (body.classList.contains("quarto-dark")) return true
  if (body.classList.contains("quarto-light")) return false
  const theme = body.dataset.bsTheme || root.dataset.bsTheme
  if (theme) return theme == "dark"
  for (let e = element; e; e = e.parentElement) {
    // red, green and blue from 0 to 255, and the opacity from 0 to 1 where it is below 1
    const colour = (getComputedStyle(e).backgroundColor.match(/[\d.]+/g) || []).map(Number)
    const [red, green, blue, opacity] = colour
    if (colour.length == 3 || opacity > .5) return .3*red + .59*green + .11*blue < 128
  }
  return matchMedia("(prefers-color-scheme: dark)").matches && /dark/.test(getComputedStyle(root).colorScheme)
}

// ------------------------------------------------------------------------------------------------------------- Text

const pen = document.createElement("canvas").getContext("2d")

// The lines of `text`, none of them longer than `wide` pixels unless it is a single word. `style` is weight and size.
const wrap = (text, wide, style, family) => {
  pen.font = style + " " + family
  const lines = [""]
  for (const word of [].concat(text).join(" ").split(" ")) {
    const longer = (lines[lines.length - 1] + " " + word).trim()
    if (pen.measureText(longer).width < wide) lines[lines.length - 1] = longer
    else lines.push(word)
  }
  return lines.filter(line => line)
}

// ---------------------------------------------------------------------------------------------------------- Fitting
//
// Labels take room that nobody knows before the chart is drawn. So a chart is drawn after a plan, measured, and drawn
// again after a better plan if something sticks out. The fields of a plan:
//   most   panels in a row, at most
//   cut    pixels to take from the width, since that much stuck out
//   legend columns that a legend may have
//   row    panels in the longest row          (written while the chart is fitted)
//   least  width of the narrowest panel       (written while the chart is fitted)
//   wide   width of the host                  (written while the chart is fitted)
//   family fonts, for measuring text

const PHONE = 600     // a host narrower than this is laid out as on a phone
const AXIS = 50       // pixels beside a panel for its vertical axis
const GAP = 30        // pixels between panels in a row
const NARROWEST = 120 // pixels that a panel keeps in any case
const READABLE = 170  // pixels below which panels in a row should rather stand below each other

const newPlan = (most, cut, family, legend = 99) => ({most, cut, family, legend, row: 1, least: Infinity})

// The plan for the next try, after one that stuck out by `over` pixels: fewer panels in a row, or narrower ones; and
// legends in one column, since their labels may be what stuck out
const nextPlan = (plan, over) => {
  const crowded = plan.row > 1 && plan.least - over / plan.row < READABLE
  return crowded ? newPlan(plan.row - 1, 0, plan.family, 1) : newPlan(plan.most, plan.cut + over, plan.family, 1)
}

// The parts of a spec, whatever way they were put together
const inner = s => [s.layer, s.vconcat, s.hconcat, s.concat, s.spec && [s.spec]].flatMap(parts => parts || [])

// The width that a spec asks for, in pixels; 0 if it leaves it open
const breadth = s => typeof s.width == "number" ? s.width : Math.max(0, ...inner(s).map(breadth))

// How many panels of `s` stand beside each other in `room` pixels
const panelsInRow = (s, room, plan) => {
  const panels = s.hconcat || s.concat || s.facet && [s.spec]
  if (!panels) return 1
  const fit = Math.floor((room + GAP) / (Math.min(200, breadth(panels[0])) + GAP))
  return Math.max(1, Math.min(fit, plan.most, s.hconcat?.length || s.columns || 99))
}

// Puts `row` panels of `s` into a row, and the others below
const setRow = (s, row, room) => {
  if (s.hconcat && row < s.hconcat.length) {
    s.vconcat = s.hconcat
    delete s.hconcat
  }
  if (s.facet?.column && !s.facet.row && room < PHONE) s.facet = s.facet.column
  if (s.concat || s.facet?.field) s.columns = row
  // an axis that facets share loses its title where they stand below each other
  if (s.facet?.field && row == 1) s.resolve = {...s.resolve, axis: {x: "independent"}}
}

// Wraps the titles of horizontal axes to `long` pixels, and limits the labels of the vertical axis on a phone
const fitAxes = (s, long, plan) => {
  const axis = s.encoding?.y?.axis
  if (axis?.labelLimit && plan.wide < PHONE) axis.labelLimit = Math.min(axis.labelLimit, plan.wide * .4)
  for (const channel of [s.encoding?.x, s.encoding?.x2]) {
    if (typeof channel?.title == "string") channel.title = wrap(channel.title, long - 10, "12px", plan.family)
  }
}

// Fits the panels of `s`, and their panels, into `room` pixels: beside each other while they fit, else below
const fitPanels = (s, room, plan, cut = plan.cut) => {
  const row = panelsInRow(s, room, plan)
  setRow(s, row, room)
  plan.row = Math.max(plan.row, row)
  const free = room - AXIS - cut
  if (s.width > free) s.width = Math.max(NARROWEST, free)
  const known = s.width > 0 // it may be "container", or not there
  if (known) plan.least = Math.min(plan.least, s.width)
  fitAxes(s, known ? s.width : free, plan)
  const inside = Math.min(room / row, known ? s.width + AXIS + cut : room)
  for (const part of inner(s)) fitPanels(part, inside, plan, cut / row)
}

// Wraps title and subtitle to `wide` pixels
const fitTitle = (s, wide, family) => {
  if (typeof s.title == "string" || Array.isArray(s.title)) s.title = {text: s.title}
  if (s.title?.text) s.title.text = wrap(s.title.text, wide - 10, "600 15px", family)
  if (s.title?.subtitle) s.title.subtitle = wrap(s.title.subtitle, wide - 10, "12px", family)
}

// Stacks legends and limits labels where there is little room
const fitConfig = (config, wide, plan) => {
  if (wide >= PHONE) return
  const layout = {top: {direction: "vertical", anchor: "start", margin: 4}}
  Object.assign(config.legend, {titleOrient: "top", columns: Math.min(plan.legend, Math.floor(wide / 120)), layout})
  config.axisY = {labelLimit: wide * .4, ...config.axisY}
}

// Fewer columns in the legends that name a number of columns
const fitLegends = (s, wide, plan) => {
  const most = columns => Math.max(1, Math.min(plan.legend, Math.floor(columns * Math.min(1, wide / 700))))
  for (const channel of ["color", "shape"]) { // one legend for both, so they must agree
    const legend = s.encoding?.[channel]?.legend
    if (legend?.columns) legend.columns = most(legend.columns)
  }
  for (const part of inner(s)) fitLegends(part, wide, plan)
}

// What a chart itself wants where there is little room: `columns` of panels, `heights` of panels from top to bottom
const applyNarrow = (s, {columns, heights = []}) => {
  if (columns) Object.assign(s, {columns, spacing: {row: 14, column: 3}})
  heights.forEach((height, i) => { (s.vconcat || [s])[i].height = height })
}

// Fits the spec `s` into `wide` pixels, in place, and gives it back
const fit = (s, wide, plan) => {
  plan.wide = wide
  fitTitle(s, wide, plan.family)
  s.config = s.config || {}
  s.config.legend = {...s.config.legend, labelLimit: plan.legend > 1 ? wide - 110 : wide * .6 - 35}
  // Vega-Lite fits a chart to its container only where its height is a number
  if (s.width == "container" && s.height?.step) s.width = wide - AXIS
  const asked = s.columns
  fitPanels(s, wide, plan)
  fitConfig(s.config, wide, plan)
  fitLegends(s, wide, plan)
  const narrow = wide < PHONE || plan.cut > 1 || s.columns < asked
  if (narrow) applyNarrow(s, s.usermeta?.narrow || {})
  return s
}

// --------------------------------------------------------------------------------------------------------- Tooltips

// A line shows the tooltip of its first row, wherever it is touched. So each of its rows gets a point that nobody sees
// and the mouse finds. Changes the spec `s` in place and gives it back.
const addPoints = s => {
  const mark = typeof s.mark == "string" ? {type: s.mark} : s.mark
  const point = {opacity: 0, size: 90, ...(s.encoding?.tooltip ? {} : {tooltip: true})}
  if (mark?.type == "line" && !mark.point && !s.params) s.mark = {...mark, point}
  inner(s).forEach(addPoints)
  return s
}

// ---------------------------------------------------------------------------------------------------------- Drawing

// Draws a chart into its host, in the page's colours, up to six times until nothing sticks out
const draw = async (host, chart) => {
  const dark = isDark(host), [view, controls] = host.children
  const ink = dark ? chart.inks.dark : chart.inks.light
  const spec = JSON.parse(JSON.stringify(chart.spec).replaceAll(chart.inks.either, ink))
  const options = {actions: false, renderer: "svg", bind: controls, tooltip: {theme: dark ? "dark" : "light"}}
  const over = () => host.scrollWidth - host.clientWidth
  let plan = newPlan(99, 0, chart.family)
  for (let tries = 6; tries--; plan = nextPlan(plan, over())) {
    host.drawn?.finalize()
    controls.textContent = ""
    const fitted = addPoints(fit(structuredClone(spec), host.clientWidth, plan))
    host.drawn = await window.vegaEmbed(view, fitted, options)
    if (over() < 1) break
  }
  tellAddress(host, chart)
  // what still sticks out can be scrolled, with the keyboard too
  if (over() > 0) host.tabIndex = 0
  else host.removeAttribute("tabindex")
}

// Says in words what could not be drawn
const fail = (host, chart) => {
  host.firstElementChild.textContent = "The chart could not be drawn here. " + chart.said
}

// ------------------------------------------------------------------------------------------------------ Addresses
//
// A chart with `usermeta.address` has states with an address: `#prefix/value` chooses `value` in the field `field` of
// its selection `param`, and another choice changes the address. `values` are those that there are, `first` is chosen
// where the address says nothing. With `also`, another parameter has a part of its own: `#prefix/value/mode`.
// Charts with a `label` share one place on the page, with a switch that shows one of them.

// Gives the selection or parameter named `param` a value, wherever in the spec it is
const choose = (s, param, value) => {
  if (!s || typeof s != "object") return
  for (const p of Array.isArray(s.params) ? s.params : []) if (p.name == param) p.value = value
  Object.values(s).forEach(part => choose(part, param, value))
}

// Says below the chart, to a screen reader too, what the address asked for in vain
const note = (host, text) => {
  const old = host.nextElementSibling?.classList.contains("th-note") ? host.nextElementSibling : null
  const place = old || Object.assign(document.createElement("p"), {className: "th-note"})
  place.setAttribute("role", "status")
  place.textContent = text
  if (!old) host.after(place)
}

// The parts of the page's address, such as model, head and mode
const parts = () => decodeURIComponent(location.hash.slice(1)).split("/")

// Lets the spec of a chart follow the address of the page; is this chart meant?
const followAddress = (host, chart) => {
  const a = chart.spec.usermeta?.address
  if (!a) return false
  const [prefix, value, more] = parts()
  if (prefix != a.prefix || !value) return false
  const known = a.values.includes(value), heard = !more || a.also?.values.includes(more)
  const lost = [!known && `There is no ${value} here.`, !heard && `There is no mode ${more} here.`].filter(Boolean)
  const shown = known ? value : a.first
  note(host, lost.length ? lost.concat("Shown is " + shown + ".").join(" ") : "")
  choose(chart.spec, a.param, [{[a.field]: shown}])
  if (a.also && heard) choose(chart.spec, a.also.param, more || a.also.values[0])
  showModel(host)
  return true
}

// All explorers of this page, by their hosts; those with a label take turns in one place
const models = window.talkingHeadsModels = window.talkingHeadsModels || new Map()

// Shows one of the charts that share a place
const showModel = host => {
  if (!models.has(host)) return
  for (const [other, button] of models) {
    const on = other == host
    other.hidden = !on
    const said = other.nextElementSibling
    if (said?.classList.contains("th-note")) said.hidden = !on
    button.setAttribute("aria-pressed", on)
  }
}

// Puts a chart with a label into the switch, which stands before the first of them
const joinSwitch = (host, chart) => {
  const a = chart.spec.usermeta?.address
  if (!a?.label) return
  const first = [...models.keys()][0] || host
  if (!models.size) {
    const row = Object.assign(document.createElement("div"), {className: "th-models"})
    row.setAttribute("role", "group")
    row.setAttribute("aria-label", "model")
    host.before(row)
  }
  const button = Object.assign(document.createElement("button"), {type: "button", textContent: a.label})
  document.querySelector(".th-models").append(button)
  models.set(host, button)
  button.addEventListener("click", () => {
    const now = host.drawn?.view.signal(a.param)?.[a.field]?.[0] || a.first
    history.replaceState(null, "", `#${a.prefix}/${now}`)
    showModel(host)
  })
  showModel(first)
}

// What an address names and no chart of this page has is said once, below the switch
const tellUnknown = () => {
  const row = document.querySelector(".th-models"), [prefix, value] = parts()
  if (!row || !value) return
  const known = [...models.keys()].some(host => host.dataset.prefix == prefix)
  note(row, known ? "" : `There is no model ${prefix} here.`)
}

// Keeps the chart in the window while those above it are still drawn, until the reader moves
const stayAt = host => {
  let tries = 15
  const timer = setInterval(() => {
    host.scrollIntoView({block: "start", behavior: "instant"})
    if (!tries--) clearInterval(timer)
  }, 150)
  for (const kind of ["wheel", "keydown", "touchstart", "pointerdown"])
    addEventListener(kind, () => clearInterval(timer), {once: true, passive: true})
}

// Lets the address of the page follow what is chosen in a chart
const tellAddress = (host, chart) => {
  const a = chart.spec.usermeta?.address
  if (!a) return
  const view = host.drawn.view
  const tell = () => {
    const value = view.signal(a.param)?.[a.field]?.[0], more = a.also && view.signal(a.also.param)
    if (!value) return
    const address = `#${a.prefix}/${value}${more && more != a.also.values[0] ? "/" + more : ""}`
    if (location.hash == address) return
    choose(chart.spec, a.param, [{[a.field]: value}])
    if (a.also) choose(chart.spec, a.also.param, more)
    history.replaceState(null, "", address)
  }
  view.addSignalListener(a.param, tell)
  if (a.also) view.addSignalListener(a.also.param, tell)
}

// --------------------------------------------------------------------------------------------------------- Watching

// Resolves when the host is in the window
const near = host => new Promise(ok => {
  const observer = new IntersectionObserver(entries => {
    if (!entries.some(e => e.isIntersecting)) return
    observer.disconnect()
    ok()
  })
  observer.observe(host)
})

// Resolves when the chart before this one has begun and the browser has nothing else to do. All charts of a page
// share the promise `window.talkingHeadsTurn`.
const turn = async () => {
  await window.talkingHeadsTurn
  await new Promise(ok => (window.requestIdleCallback || setTimeout)(ok))
}

// Draws the chart when its turn comes or its host is in the window, whichever is first, and again whenever the page
// changes its colours or the host its width
const watch = (host, chart) => {
  let seen = "", busy = Promise.resolve()
  const look = () => {
    const now = isDark(host) + " " + host.clientWidth
    if (now == seen || !host.clientWidth || !host.isConnected) return
    seen = now
    busy = busy.then(() => draw(host, chart)).catch(() => fail(host, chart))
  }
  const meant = () => {
    if (!followAddress(host, chart)) return false
    seen = ""
    look()
    busy = busy.then(() => stayAt(host))
    return true
  }
  const begin = () => {
    look()
    addEventListener("hashchange", meant)
    new ResizeObserver(look).observe(host)
    for (const e of [document.body, document.documentElement]) {
      new MutationObserver(look).observe(e, {attributes: true})
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", look)
    return busy
  }
  joinSwitch(host, chart)
  host.dataset.prefix = chart.spec.usermeta?.address?.prefix || ""
  host.classList.toggle("th-explorer", !!host.dataset.prefix) // what is chosen stands above what it shows
  if (host.dataset.prefix) {
    addEventListener("hashchange", tellUnknown)
    addEventListener("load", tellUnknown)
    setTimeout(tellUnknown)
  }
  if (meant()) begin()
  else window.talkingHeadsTurn = Promise.race([near(host), turn()]).then(begin)
}

// ---------------------------------------------------------------------------------------------------------- Loading

const fetchScript = src => new Promise((onload, onerror) =>
  document.head.append(Object.assign(document.createElement("script"), {src, onload, onerror})))

// Loads Vega if the page has none. The page may load its own after this script, so we wait for the page first.
// `define` is put aside meanwhile: where a page has a module loader, the libraries would register with it and not
// in `window`.
const load = async libraries => {
  const waiting = !window.vegaEmbed && document.readyState != "complete"
  if (waiting) await new Promise(ok => addEventListener("load", ok))
  if (window.vegaEmbed) return
  const define = window.define
  window.define = undefined
  try {
    for (const src of libraries) await fetchScript(src)
  } finally {
    window.define = define
  }
}

// Shows `chart` in all its hosts that have no chart yet. All charts of a page share the promise
// `window.talkingHeadsVega`, so that Vega is loaded once.
const showChart = chart => {
  const hosts = [...document.querySelectorAll("#" + chart.id)].filter(host => !host.dataset.seen)
  for (const host of hosts) host.dataset.seen = "yes"
  window.talkingHeadsVega = window.talkingHeadsVega || load(chart.libraries)
  const each = how => () => hosts.forEach(host => how(host, chart))
  window.talkingHeadsVega.then(each(watch), each(fail))
}
