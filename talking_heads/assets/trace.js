// Draws one traced prompt: the sentence with arcs from the reading position, and the account of the arc that is chosen.
//
// `trace_page` (module talking_heads.circuits.trace_page) writes this file and a call of `showTrace` into the page. Nothing
// is built, imported or asked for. The end tag of a script element must not occur here, not even in a string.
//
// The data are an object:
//   tokens    texts of the tokens
//   query     position of the reading token; `key` and `against` (or null): the positions that were asked about
//   arcs      by position: {at, attention, twin (attention in the twin, or null)}
//   accounts  "asked", and one for each arc by its position: {title, total, attention, sides: [{title, rows, others}]};
//             a row is [writer, term, attention without it or null]
//   senders   name of a head to what it passed on from each position, in units of the logit

const showTrace = (host, data) => {
  const NS = "http://www.w3.org/2000/svg"
  const view = host.querySelector(".th-sentence"), now = host.querySelector(".th-now")
  const panel = host.querySelector(".th-account")
  let chosen = "asked", sender = null, width = 0

  // ------------------------------------------------------------------------------------------------------- Elements

  const add = (parent, name, attributes = {}, text = null, space = null) => {
    const e = space ? document.createElementNS(space, name) : document.createElement(name)
    for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v)
    if (text !== null) e.textContent = text
    parent.append(e)
    return e
  }
  const draw = (parent, name, attributes, text = null) => add(parent, name, attributes, text, NS)
  const signed = x => (x < 0 ? "\u2212" : "+") + Math.abs(x).toFixed(2)
  const word = i => data.tokens[i].trim() || "(blank)"
  const say = text => { now.textContent = text }

  // --------------------------------------------------------------------------------------------------------- Places

  // Tokens stand in a line where they fit into it, else one below the other. Each gets a box, and the two points where
  // arcs meet it: `near` for the reader's own arcs, `far` for those of a sender.
  const measured = () => {
    const pen = document.createElement("canvas").getContext("2d")
    pen.font = getComputedStyle(view).font
    return data.tokens.map((_, i) => pen.measureText(word(i)).width + (i === data.query ? 4 : 0))
  }
  const inLine = widths => {
    let x = 6
    const reach = Math.min(170, 40 + .35 * width)
    const boxes = widths.map(w => {
      const box = { x, y: reach + 8, w: w + 8, h: 26 }
      x += w + 12
      return box
    })
    const points = boxes.map(b => ({ near: [b.x + b.w / 2, b.y], far: [b.x + b.w / 2, b.y + b.h] }))
    return { boxes, points, upright: false, reach, height: reach * (sender ? 1.75 : 1) + 44 }
  }
  const inColumn = widths => {
    const reach = Math.min(120, width * .3), x = reach + 14, widest = Math.max(...widths) + 8
    const boxes = widths.map((w, i) => ({ x, y: 6 + 28 * i, w: w + 8, h: 26 }))
    const points = boxes.map(b => ({ near: [b.x - 5, b.y + 13], far: [x + widest + 4, b.y + 13] }))
    return { boxes, points, upright: true, reach: Math.min(reach, width - x - widest - 12), near: reach, height: 28 * widths.length + 12 }
  }
  const places = () => {
    const widths = measured(), total = widths.reduce((a, w) => a + w + 12, 12)
    return total <= width ? inLine(widths) : inColumn(widths)
  }

  // The curve between two points, bent away from the tokens by more the farther they are apart
  const curve = (layout, from, to, which) => {
    const [a, b] = [layout.points[from][which], layout.points[to][which]], along = layout.upright ? 1 : 0
    const far = Math.abs(a[along] - b[along]), span = layout.upright ? layout.height : width
    const reach = which === "near" && layout.upright ? layout.near : layout.reach
    const bend = Math.max(12, Math.min(1, .25 + far / span) * reach) * (which === "near" ? -1 : 1)
    const pulled = ([x, y]) => layout.upright ? `${x + bend},${y}` : `${x},${y + bend}`
    return from === to ? `M${a} m-6,0 a6,6 0 1 1 12,0` : `M${a} C${pulled(a)} ${pulled(b)} ${b}`
  }

  // ----------------------------------------------------------------------------------------------------------- Arcs

  const role = at => at === data.key ? "key" : at === data.against ? "against" : "plain"
  const aboutArc = a => `${word(a.at)} (position ${a.at}): attention ${a.attention.toFixed(3)}`
    + (a.twin === null ? "" : `, in the twin ${a.twin.toFixed(3)}`)

  const drawArc = (picture, layout, a) => {
    const g = draw(picture, "g", { class: `th-arc ${role(a.at)}`, role: "button", tabindex: 0, "data-at": a.at,
      "aria-pressed": String(chosen === String(a.at)), "aria-label": `${aboutArc(a)}. Show its terms.` })
    const d = curve(layout, data.query, a.at, "near")
    draw(g, "path", { d, class: "hit" })
    draw(g, "path", { d, class: "line", "stroke-width": 1 + 9 * a.attention })
    const [x, y] = layout.points[a.at].near
    draw(g, "circle", { cx: x, cy: y, r: 3.5 })
    g.addEventListener("click", () => choose(String(a.at)))
    g.addEventListener("keydown", e => onKey(e, a.at))
    for (const k of ["mouseenter", "focus"]) g.addEventListener(k, () => say(aboutArc(a)))
  }
  const onKey = (e, at) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[e.key]
    if (e.key === "Enter" || e.key === " ") choose(String(at))
    else if (step) {
      const all = [...view.querySelectorAll(".th-arc")], i = all.findIndex(o => o.dataset.at === String(at))
      all[(i + step + all.length) % all.length].focus()
    } else return
    e.preventDefault()
  }
  const drawSender = (picture, layout) => {
    const parts = data.senders[sender] || [], most = Math.max(...parts.map(Math.abs), 1e-9)
    parts.forEach((x, at) => {
      if (Math.abs(x) < .1 * most) return
      const g = draw(picture, "g", { class: `th-from ${x < 0 ? "less" : "more"}` })
      draw(g, "path", { d: curve(layout, data.query, at, "far"), class: "line", "stroke-width": 1 + 5 * Math.abs(x) / most })
      draw(g, "title", {}, `${sender} took ${signed(x)} from ${word(at)} (position ${at})`)
    })
  }

  // ------------------------------------------------------------------------------------------------------- Sentence

  const drawToken = (picture, layout, i) => {
    const b = layout.boxes[i], kind = i === data.query ? "query" : role(i)
    draw(picture, "rect", { x: b.x, y: b.y, width: b.w, height: b.h, rx: 4, class: `th-token ${kind}` })
    draw(picture, "text", { x: b.x + 4, y: b.y + 18, class: kind === "query" ? "th-reads" : "" }, word(i))
  }
  const redraw = () => {
    width = view.clientWidth
    const layout = places(), focused = document.activeElement?.dataset?.at
    view.replaceChildren()
    const picture = draw(view, "svg", { width, height: layout.height, viewBox: `0 0 ${width} ${layout.height}`, role: "group",
      "aria-label": `The sentence, with one arc for each place that ${data.head} looks at from ${word(data.query)}` })
    data.tokens.forEach((_, i) => drawToken(picture, layout, i))
    if (sender) drawSender(picture, layout)
    data.arcs.forEach(a => drawArc(picture, layout, a))
    if (focused !== undefined) view.querySelector(`[data-at="${focused}"]`)?.focus()
  }

  // -------------------------------------------------------------------------------------------------------- Account

  const drawRow = (table, [writer, term, without], most, attention, pick) => {
    const row = add(add(table, "tbody"), "tr"), name = add(row, "th", { scope: "row" })
    if (pick && data.senders[writer]) {
      const b = add(name, "button", { "aria-pressed": String(sender === writer), title: `Where ${writer} took it from` }, writer)
      b.addEventListener("click", () => { sender = sender === writer ? null : writer; redraw(); tell(writer) })
    } else name.textContent = writer
    const bar = add(add(row, "td", { class: "bar" }), "span", { class: term < 0 ? "less" : "more" })
    bar.style.width = `${50 * Math.abs(term) / most}%`
    add(row, "td", {}, signed(term))
    add(row, "td", {}, without === null ? "" : without.toFixed(2))
  }
  const drawSide = (side, account, pick) => {
    const box = add(panel, "div", { class: "side" }), table = add(box, "table")
    add(table, "caption", {}, side.title)
    const head = add(add(table, "thead"), "tr")
    for (const k of ["writer", "", "term", account.attention === null ? "" : "without"]) add(head, "th", { scope: "col" }, k)
    const most = Math.max(...side.rows.map(r => Math.abs(r[1])), 1e-9)
    for (const r of side.rows) drawRow(table, r, most, account.attention, pick)
    if (side.others[0]) drawRow(table, [`${side.others[0]} others`, side.others[1], null], most, null, false)
  }
  const tell = again => {
    const account = data.accounts[chosen]
    panel.replaceChildren()
    add(panel, "h3", {}, account.title)
    add(panel, "p", {}, `${signed(account.total)} in all`
      + (account.attention === null ? "" : `; attention ${account.attention.toFixed(3)}`))
    account.sides.forEach((s, i) => drawSide(s, account, i === 0))
    if (chosen !== "asked") add(panel, "button", { class: "back" }, data.back).addEventListener("click", () => choose("asked"))
    if (again) [...panel.querySelectorAll("th button")].find(b => b.textContent === again)?.focus()
  }
  const choose = what => {
    chosen = what
    redraw()
    tell()
  }

  new ResizeObserver(() => { if (view.clientWidth !== width) redraw() }).observe(view)
  choose("asked")
}
