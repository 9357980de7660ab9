// Sends one mail as a Node application would; the job comes as JSON on standard input. Run by support/clients.py.
"use strict";

const fs = require("node:fs");
const nodemailer = require("nodemailer");

const job = JSON.parse(fs.readFileSync(0, "utf8"));
const transport = nodemailer.createTransport({
  host: job.host,
  port: job.port,
  secure: false,
  requireTLS: job.username !== null,
  ignoreTLS: job.username === null,
  auth: job.username === null ? undefined : { user: job.username, pass: job.password },
  tls: job.ca_file === null ? {} : { ca: fs.readFileSync(job.ca_file) },
  connectionTimeout: 30000,
});

transport
  .sendMail({ from: job.sender, to: job.recipient, subject: job.subject, text: job.text })
  .then((info) => console.log(info.response))
  .catch((error) => {
    console.error(error);
    process.exitCode = 1;
  });
