// Answers every request with a line that says who it is, and stops when asked to.
'use strict'

const express = require('express')

const app = express()
app.get('/', (_request, response) => {
  response.type('text').send(`Hello from the Node.js example, Node.js ${process.version}\n`)
})

const server = app.listen(process.env.PORT || 8080, () => {
  console.log(`listening on port ${server.address().port}`)
})

// Requests under way are answered before the process ends; idle keep-alive connections need not be waited for.
process.on('SIGTERM', () => {
  console.log('stopping')
  server.close(() => process.exit(0))
  server.closeIdleConnections()
})
