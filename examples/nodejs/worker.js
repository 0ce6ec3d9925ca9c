// Does a bit of work every ten seconds until it is asked to stop.
'use strict'

let done = 0
const timer = setInterval(() => console.log(`worked ${++done} times`), 10_000)
console.log('worker started')

process.on('SIGTERM', () => {
  console.log('worker stopping')
  clearInterval(timer)
})
