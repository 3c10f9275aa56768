// What tools/browser.py asks of a page. The file is one object of functions.
({
  // Is every chart of the page drawn?
  drawn: () => [...document.querySelectorAll(".th-chart:not([hidden])")].every(h => h.querySelector("svg, canvas")),

  // Is every chart drawn that begins in the window?
  windowDrawn: () => [...document.querySelectorAll(".th-chart:not([hidden])")]
    .every(h => h.querySelector("svg") || h.getBoundingClientRect().top > innerHeight),

  // Seconds since the page was asked for, read when the thread is free after the next frame
  seconds: () => new Promise(ok => requestAnimationFrame(() => setTimeout(() => ok(performance.now() / 1000)))),

  // Bytes that were read, number of charts, and how often and how expensively Vega was loaded
  cost: () => {
    const read = [performance.getEntriesByType("navigation")[0], ...performance.getEntriesByType("resource")]
    const vega = read.filter(e => e.name.endsWith("/vega.js"))
    return {
      bytes: read.reduce((n, e) => n + e.decodedBodySize, 0),
      charts: document.querySelectorAll(".th-chart").length,
      vega_loads: vega.length,
      vega_bytes: vega.reduce((n, e) => n + e.transferSize, 0),
    }
  },
})
