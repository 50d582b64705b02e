// Starts the mocks that nobody here wrote, on loopback alone: emulate's twilio, resend and stripe, and
// stripe-stateful-mock as "charges". Says {name: port} in one line of JSON, and ends when its stdin does.
//
// node mocks.cjs .../node_modules '{"account": "AC...", "token": "..."}': where they are, and the Twilio account
// that exists with its real token.
'use strict';

const http = require('node:http');
const net = require('node:net');
const { pathToFileURL } = require('node:url');

// emulate says no address, which is every address of the machine.
const listen = net.Server.prototype.listen;
const listening = [];
net.Server.prototype.listen = function (port) {
  listening.push(this);
  return listen.call(this, port, '127.0.0.1');
};

async function started() {
  const server = listening.pop();
  if (!server.listening) await new Promise((done) => server.once('listening', done));
  return server.address().port;
}

async function main() {
  const [, , modules, twilio] = process.argv;
  const { account, token } = JSON.parse(twilio);
  const { createEmulator } = await import(pathToFileURL(`${modules}/emulate/dist/api.js`).href);
  const { createExpressApp } = require(`${modules}/stripe-stateful-mock`);
  const ports = {};
  const seed = {
    twilio: {
      account: { sid: account, auth_token: token },
      phone_numbers: [{ phone_number: '+14155550111', friendly_name: 'Ours' }],
      verify_services: [{ friendly_name: 'Ours', code: '123456', default_channel: 'sms' }],
    },
    resend: { domains: [{ name: 'x.test', region: 'us-east-1' }] },
  };
  for (const service of ['twilio', 'resend', 'stripe']) {
    await createEmulator({ service, port: 0, seed });
    ports[service] = await started();
  }
  http.createServer(createExpressApp()).listen(0);
  ports.charges = await started();
  process.stdout.write(`${JSON.stringify(ports)}\n`);
  process.stdin.on('end', () => process.exit(0)).resume();
}

main();
