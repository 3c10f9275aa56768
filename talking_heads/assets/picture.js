// Moves the picture of `picture_html` (module talking_heads.site.picture): what a slider says becomes widths and numbers.
//
// `data` is an object:
//   factors     the factors, in order
//   still       the factor that the page shows without a script, and where the picture comes to rest
//   names       of each sentence, the right name and the repeated one
//   states      of each sentence, for "message" and "control" one row per factor: attention to IO, S1 and S2,
//               probability of the right name and of the repeated one
//   components  the message and the control

const minus = x => String(x).replace("-", "\u2212")
const two = x => x.toFixed(2)
const ARMS = ["message", "control"]

// What one panel shows, in words, as `panel_words` says it
const words = (data, i, arm, k) => {
  const [io, s1, s2, right, wrong] = data.states[i][arm][k], [IO, S] = data.names[i]
  const what = arm == "message" ? "Component" : "Control component"
  return `${what} ${data.components[ARMS.indexOf(arm)]} times ${minus(data.factors[k])}: the movers give ${two(io)} of ` +
    `their attention to ${IO} and ${two(s1 + s2)} to ${S}; next word ${IO} ${two(right)}, ${S} ${two(wrong)}.`
}

// Draws one panel at factor number `k`
const setPanel = (svg, data, i, arm, k) => {
  const row = data.states[i][arm][k], factor = data.factors[k]
  const look = {IO: row[0], S1: row[1], S2: row[2]}
  for (const [role, share] of Object.entries(look)) {
    svg.querySelector(`[data-arc=${role}]`).setAttribute("stroke-width", .6 + 13 * share)
    svg.querySelector(`[data-look=${role}]`).textContent = two(share)
  }
  const p = {io: row[3], s: row[4]}
  for (const [name, share] of Object.entries(p)) {
    svg.querySelector(`[data-bar=${name}]`).setAttribute("width", Math.max(.5, 180 * share))
    svg.querySelector(`[data-p=${name}]`).textContent = two(share)
  }
  const channel = svg.querySelector("[data-channel]")
  channel.setAttribute("stroke-width", .8 + 3 * Math.abs(factor))
  channel.classList.toggle("less", factor < 0)
  svg.querySelector(".factor").textContent = `${data.components[ARMS.indexOf(arm)]} \u00d7 ${minus(factor)}`
  svg.setAttribute("aria-label", words(data, i, arm, k))
}

const showPicture = (host, data) => {
  const slide = host.querySelector(".th-slide"), slider = slide.querySelector("input[type=range]")
  const sentences = [...host.querySelectorAll(".th-one")], button = slide.querySelector("button")
  const chosen = () => +slide.querySelector("fieldset input:checked").value
  let timer = 0

  const show = k => {
    const i = chosen(), said = ARMS.map(arm => words(data, i, arm, k)).join(" ")
    sentences.forEach((one, j) => { one.hidden = j != i })
    for (const svg of sentences[i].querySelectorAll("svg")) setPanel(svg, data, i, svg.dataset.arm, k)
    slider.value = data.factors[k]
    slider.setAttribute("aria-valuetext", "times " + minus(data.factors[k]) + ". " + words(data, i, "message", k))
    slide.querySelector("output").textContent = "\u00d7 " + minus(data.factors[k])
    sentences[i].querySelector(".th-said").textContent = said
  }
  const nearest = x => data.factors.reduce((best, f, k) => Math.abs(f - x) < Math.abs(data.factors[best] - x) ? k : best, 0)
  const stop = () => { clearInterval(timer); timer = 0; button.textContent = "Play" }

  // From the model as it is to the other end and back to where it rests
  const play = () => {
    const from = nearest(1), rest = nearest(data.still), path = []
    for (let k = from; k >= 0; k--) path.push(k)
    for (let k = 1; k <= rest; k++) path.push(k)
    let at = 0
    stop()
    show(path[0])
    button.textContent = "Stop"
    timer = setInterval(() => { ++at < path.length ? show(path[at]) : stop() }, 420)
  }

  slide.hidden = false
  slider.addEventListener("input", () => { stop(); show(nearest(slider.value)) })
  slide.querySelector("fieldset").addEventListener("change", () => { stop(); show(nearest(slider.value)) })
  button.addEventListener("click", () => timer ? stop() : play())
  show(nearest(data.still))
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches
  const watcher = new IntersectionObserver(entries => {
    if (!entries.some(e => e.isIntersecting)) return
    watcher.disconnect()
    if (!still) play()
  }, {threshold: .5})
  watcher.observe(host)
}
