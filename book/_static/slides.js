// Last in a deck of slides, see book/ood_book/teach/deck.py.
// Formulas first. Then what does not fit gets smaller, with the answers of a quiz open. Then reveal.js may hide slides.
const fits = box => box.scrollHeight <= box.clientHeight && box.scrollWidth <= box.clientWidth
const size = box => parseFloat(getComputedStyle(box).fontSize)
const shrink = box => {
  const own = size(box) / size(box.parentElement)
  for (let part = 0.96; part > 0.3 && !fits(box); part -= 0.04) box.style.fontSize = own * part + 'em'
}
MathJax.startup.promise.then(() => MathJax.typesetPromise()).then(() => {
  // The window of the notes copies them without MathJax's styles: what is for screen readers hides itself.
  for (const one of document.querySelectorAll('.notes mjx-assistive-mml')) {
    one.style.cssText = 'position: absolute; clip-path: inset(50%)'
  }
  const folded = document.querySelectorAll('.slide details')
  for (const one of folded) one.open = true
  for (const boxes of ['.slide :is(.formula, .wide, pre)', '.slide']) document.querySelectorAll(boxes).forEach(shrink)
  for (const one of folded) one.open = false
  document.body.classList.remove('measured')
  const print = () => { location.search = '?print-pdf' }
  const notes = () => {
    Reveal.configure({showNotes: !Reveal.getConfig().showNotes})
    setTimeout(() => Reveal.layout())
  }
  return Reveal.initialize({
    width: 1280, height: 720, margin: 0.02, center: false, transition: 'none', slideNumber: 'c/t', hash: true,
    controls: false, pdfMaxPagesPerSlide: 1, keyboard: {78: notes, 80: print}, plugins: [RevealNotes],
  })
}).then(() => {
  document.body.classList.add('ready')
  if (location.search.includes('print-pdf')) setTimeout(() => window.print(), 500)
})
