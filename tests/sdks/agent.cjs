// The same agent with the vendor's SDK for Node, newest or old: see agent.py for what is asked and answered.
//
// node agent.cjs stripe-old stripe: the package, and whose it is.
'use strict';

const [, , name, vendor] = process.argv;

// What an SDK waits for before it goes on; what only bounds a wait never comes true.
const slept = [];
const timer = globalThis.setTimeout;
globalThis.setTimeout = (then, ms, ...rest) => {
  const theirs = new Error().stack.includes(name);
  return timer((...args) => { if (theirs) slept.push(ms / 1000); then(...args); }, ms, ...rest);
};

const PLACES = {
  stripe(key, url) {
    const Stripe = require(name);
    const at = new URL(url);
    // The SDK takes no path in front of its own, so the vendor's name goes in here.
    const httpClient = Stripe.createNodeHttpClient();
    const send = httpClient.makeRequest;
    httpClient.makeRequest = (host, port, path, ...rest) =>
      send.call(httpClient, host, port, `/stripe${path}`, ...rest);
    const stripe = new Stripe(key, { host: at.hostname, port: at.port, protocol: 'http', httpClient });
    const shown = (charge) => ({
      id: charge.id, amount: charge.amount, captured: charge.captured, amount_refunded: charge.amount_refunded,
      description: charge.description, replayed: charge.lastResponse.headers['idempotent-replayed'] || null,
    });
    const pay = async ({ idempotency_key, stripe_account, ...fields } = {}) => {
      const asked = { amount: 1000, currency: 'usd', source: 'tok_visa', ...fields };
      const options = { idempotencyKey: idempotency_key, stripeAccount: stripe_account };
      const said = idempotency_key || stripe_account ? [options] : []; // the old one takes no empty ones
      return shown(await stripe.charges.create(asked, ...said));
    };
    return {
      pay,
      long: () => pay({ description: 'x'.repeat(70000) }),
      unpriced: async () => (await stripe.subscriptions.create({ customer: 'cus_1', items: [{ price: 'price_1' }] })).id,
      upload: async () => (await stripe.files.create({
        purpose: 'dispute_evidence', file: { data: Buffer.from('PNG'), name: 'a.png', type: 'image/png' },
      })).id,
      capture: async ({ of }) => shown(await stripe.charges.capture(of)),
      refund: async (fields) => (await stripe.refunds.create(fields)).amount,
      fetch: async ({ of }) => shown(await stripe.charges.retrieve(of)),
      list: async ({ of }) => {
        const found = [];
        for await (const each of stripe.refunds.list({ limit: 2, charge: of })) found.push(each.amount);
        return found;
      },
      intent: async (fields) => (await stripe.paymentIntents.create(fields)).amount,
    };
  },

  twilio(key, url, sid = `AC${'0'.repeat(32)}`) {
    const twilio = require(name);
    class ThroughProxy extends twilio.RequestClient {
      request(options) {
        return super.request({ ...options, uri: options.uri.replace('https://', `${url}/twilio/`) });
      }
    }
    const client = twilio(sid, key, { httpClient: new ThroughProxy() });
    const ends = { to: '+14155550100', from: '+14155550111' };
    const pay = async ({ body = 'Hello' } = {}) => {
      const sent = await client.messages.create({ body, ...ends });
      return { id: sent.sid, segments: sent.numSegments };
    };
    return {
      pay,
      long: () => pay({ body: 'x'.repeat(70000) }),
      unpriced: async () => (await client.calls.create({ url: 'https://a.test/say', ...ends })).sid,
      call: async () => (await client.calls.create({ twiml: '<Response><Say>Hello</Say></Response>', timeLimit: 90, ...ends })).to,
      verify: async () => {
        const [{ sid: id }] = await client.verify.v2.services.list({ limit: 1 });
        const service = client.verify.v2.services(id);
        const begun = await service.verifications.create({ to: '+14155550100', channel: 'sms' });
        const checked = await service.verificationChecks.create({ to: '+14155550100', code: '123456' });
        return [begun.status, checked.status];
      },
      fetch: async ({ of }) => (await client.messages(of).fetch()).body,
      list: async () => (await client.messages.list({ pageSize: 2 })).map((each) => each.body),
    };
  },

  resend(key, url) {
    process.env.RESEND_BASE_URL = `${url}/resend`; // the old one takes no option, and reads it when it is loaded
    const { Resend } = require(name);
    const resend = new Resend(key);
    const mail = { from: 'me@x.test', to: ['a@x.test'], subject: 'Hi', text: 'Hello' };
    // It never throws.
    const taken = ({ data, error }) => {
      if (error) throw Object.assign(new Error(error.message), { code: error.name, kind: 'error' });
      return data;
    };
    const pay = async ({ idempotency_key, ...fields } = {}) => {
      const options = idempotency_key ? { idempotencyKey: idempotency_key } : {};
      return { id: taken(await resend.emails.send({ ...mail, ...fields }, options)).id };
    };
    return {
      pay,
      long: () => pay({ text: 'x'.repeat(70000) }),
      unpriced: () => pay({ to: 'a@x.test, b@x.test' }),
      batch: async () => taken(await resend.batch.send([mail, { ...mail, cc: ['c@x.test'] }])).data.length,
      fetch: async ({ of }) => taken(await resend.emails.get(of)).subject,
      list: async () => taken(await resend.emails.list()).data.length,
    };
  },
};

async function answer({ call, key, url, sid, ...more }) {
  slept.length = 0;
  try {
    return { said: await PLACES[vendor](key, url, sid)[call](more), slept };
  } catch (error) {
    const code = (error.details || {}).code || error.code || null;
    return { kind: error.kind || error.constructor.name, text: String(error.message), code, slept };
  }
}

(async () => {
  for await (const line of require('node:readline').createInterface({ input: process.stdin })) {
    process.stdout.write(`${JSON.stringify(await answer(JSON.parse(line)))}\n`);
  }
})();
