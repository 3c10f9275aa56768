// What tests/test_docs.py asks of a page. The file is one object of functions; `chart` is an element `.th-chart`.
({
  // Code is coloured by kind of word. Of code blocks that show no new kind, one is as readable as the next, and axe
  // takes long over each: mark all but the first.
  markAlike: () => {
    const seen = new Set([""])
    document.querySelectorAll("pre").forEach(p => {
      const kinds = [...p.querySelectorAll("span")].map(s => s.className)
      if (seen.size > 1 && kinds.every(k => seen.has(k))) p.dataset.alike = "yes"
      kinds.forEach(k => seen.add(k))
    })
  },

  // Violations that axe finds: impact, rule, and the elements with the reason; of all rules or of those named
  violations: async (...rules) => {
    const only = rules.length ? {runOnly: rules} : {}
    const found = await axe.run({exclude: [["[data-alike]"], [".th-view svg"]]},
      {resultTypes: ["violations"], preload: false, ...only})
    const told = n => n.html.slice(0, 150) + " " + (n.any[0]?.message || "")
    return found.violations.map(v => [v.impact, v.id, v.nodes.map(told)])
  },

  // Of every chart: number of marks, length of its description, pixels by which it is too wide
  charts: () => {
    const marks = ["path", "text", "line"].map(m => `svg [class*="mark-"] ${m}`).join() + ", canvas"
    return [...document.querySelectorAll(".th-chart:not([hidden])")].map(h => ({
      id: h.id,
      marks: h.querySelectorAll(marks).length,
      said: h.querySelector(".th-view")?.getAttribute("aria-label")?.length || 0,
      wide: h.scrollWidth - h.clientWidth,
    }))
  },

  isDark: () => getComputedStyle(document.body).backgroundColor.match(/\d+/g).every(c => c < 70),

  // Characters in the tooltip that is shown, if any
  tooltip: () => document.querySelector("#vg-tooltip-element.visible")?.textContent.trim().length || 0,

  // The element that has the keyboard, and how that is shown
  focused: () => {
    const style = getComputedStyle(document.activeElement)
    return [document.activeElement.tagName, style.outlineStyle + style.boxShadow]
  },

  // The picture of a chart, without the ids that Vega counts up
  drawn: chart => chart.querySelector("svg").outerHTML.replace(/(clip|gradient)_?\d+/g, ""),

  size: chart => [chart.scrollWidth - chart.clientWidth, chart.querySelector("svg").getBoundingClientRect().height],

  // What a chart promises to answer to: names of parameters, with the way
  promises: chart => {
    const found = []
    const how = p => {
      if (p.bind == "legend" || p.bind?.legend) return "legend"
      return p.bind ? "control" : p.select?.type || p.select
    }
    const walk = x => {
      if (!x || typeof x != "object") return
      if (Array.isArray(x.params))
        x.params.filter(p => p.select || p.bind).forEach(p => found.push({name: p.name, how: how(p)}))
      Object.values(x).forEach(walk)
    }
    walk(chart.drawn.spec)
    return found
  },

  // Places of at most some 40 elements of a chart in the window, the chart scrolled into it
  spots: (chart, which) => {
    window.scrollTo({top: chart.getBoundingClientRect().y + scrollY - 90, behavior: "instant"})
    const boxes = [...chart.querySelectorAll(which)].map(m => m.getBoundingClientRect())
    const all = boxes.filter(r => r.width + r.height > 0)
    const step = Math.max(1, Math.floor(all.length / 40))
    return all.filter((r, i) => i % step == 0)
      .map(r => [r.x + r.width / 2, r.y + r.height / 2])
      .filter(([x, y]) => y > 70 && y < innerHeight - 5)
  },

  // Turn the control of a chart
  turn: chart => {
    const c = chart.querySelector(".th-controls select, .th-controls input")
    if (c.tagName == "SELECT") c.selectedIndex = (c.selectedIndex + 1) % c.options.length
    else if (c.type == "checkbox") c.checked = !c.checked
    else if (c.type == "radio") chart.querySelector(".th-controls input:not(:checked)").click()
    else c.value = c.value == c.max ? c.min : c.max
    for (const kind of ["input", "change"]) c.dispatchEvent(new Event(kind, {bubbles: true}))
  },
})
