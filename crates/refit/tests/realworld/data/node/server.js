const http = require("http");
const escape = require("escape-html");
const ms = require("ms");

http
  .createServer((request, response) => {
    const length = decodeURIComponent(request.url.slice(1));
    response.end(`${escape(length)} is ${ms(length)} ms\n`);
  })
  .listen(8080, "127.0.0.1");
