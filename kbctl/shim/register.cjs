// Steers SDKs that read no base URL from the environment to kbctl's proxy; `kbctl run` has Node require it.
//
// What must stay true: it acts only in a process that holds a vault key, it changes nothing but where stripe and
// twilio send their calls, and it never fails in silence: what can't be steered is said on stderr, and with
// KBCTL_SHIM=strict its import fails.
'use strict';

const proxy = (process.env.KBCTL_PROXY_URL || '').replace(/\/+$/, '');
const strict = process.env.KBCTL_SHIM === 'strict';
const LOCAL = ['127.0.0.1', 'localhost', '[::1]'];
// How an import asks for what a require calls by its name.
const ENTRY = /[\\/](stripe|twilio)[\\/](?:lib[\\/]index|cjs[\\/]stripe\.cjs\.node)\.js$/;
const done = new WeakSet();
const warned = new Set();

function warn(text) {
  if (warned.has(text)) return;
  warned.add(text);
  try {
    process.stderr.write(`kbctl: WARNING: ${text}\n`);
  } catch {
    // no stderr: the program goes on, as without us
  }
}

function holdsKey(...names) {
  return names.some((name) => (process.env[name] || '').startsWith('vault_key_'));
}

function toProxy(host, port) {
  const own = new URL(proxy);
  const same = host === own.hostname || (LOCAL.includes(host) && LOCAL.includes(own.hostname));
  return same && String(port) === (own.port || '80');
}

// The prototype that has this method itself.
function owner(start, method) {
  for (let at = start; at; at = Object.getPrototypeOf(at)) {
    if (Object.prototype.hasOwnProperty.call(at, method)) return at;
  }
  throw new Error(`it has no ${method}`);
}

// The constructor reads its options through one method: what is missing there is ours.
function stripe(exported) {
  const Stripe = exported.Stripe || exported.default || exported;
  const prototype = owner(Stripe.prototype, '_getPropsFromConfig');
  if (done.has(prototype)) return;
  const original = prototype._getPropsFromConfig;
  prototype._getPropsFromConfig = function (config) {
    const props = original.call(this, config);
    if (props.host && !toProxy(props.host, props.port || 443)) {
      warn(`stripe with host ${props.host} leads around the proxy; a vault key is worth nothing there`);
      return props;
    }
    const url = new URL(proxy);
    const steered = { ...props, host: url.hostname, port: url.port || '80', protocol: url.protocol.slice(0, -1) };
    if (!props.httpClient && typeof Stripe.createNodeHttpClient === 'function') {
      // The SDK takes no path in front of its own; a key over several vendors needs one.
      const client = Stripe.createNodeHttpClient(props.httpAgent);
      const send = client.makeRequest;
      client.makeRequest = (host, port, path, ...rest) => {
        // Older ones upload to files.stripe.com whatever host they are given; the proxy refuses what that is for.
        const theirs = /(^|\.)stripe\.com$/.test(host);
        if (theirs) return send.call(client, url.hostname, steered.port, `/stripe${path}`, ...rest);
        return send.call(client, host, port, toProxy(host, port) ? `/stripe${path}` : path, ...rest);
      };
      steered.httpClient = client;
    }
    return steered;
  };
  done.add(prototype);
}

function twilio(exported) {
  const Twilio = exported.Twilio || exported.default || exported;
  const prototype = owner(Twilio.prototype, 'request');
  if (done.has(prototype)) return;
  const { request } = prototype;
  const names = owner(Twilio.prototype, 'getHostname');
  const { getHostname } = names;
  prototype.request = function (options) {
    const url = options && options.uri ? new URL(options.uri) : null;
    if (url && url.protocol === 'https:' && /(^|\.)twilio\.com$/.test(url.hostname)) {
      const uri = `${proxy}/twilio/${url.host}${url.pathname}${url.search}`;
      return request.call(this, { ...options, uri });
    }
    return request.call(this, options);
  };
  names.getHostname = function (hostname, ...rest) {
    return LOCAL.includes(hostname) ? hostname : getHostname.call(this, hostname, ...rest);
  };
  done.add(prototype);
}

// Which SDK it is, installed under another name ("stripe-old": "npm:stripe@14").
function recognise(exported) {
  if (typeof exported !== 'function') return undefined;
  if (exported.prototype && '_getPropsFromConfig' in exported.prototype) return 'stripe';
  return exported.Twilio && exported.RequestClient ? 'twilio' : undefined;
}

function steer(name, how, exported) {
  try {
    how(exported);
  } catch (error) {
    const text =
      `this version of ${name} can't be steered to the proxy (${error.message}): its calls go to the vendor ` +
      `itself, where a vault key is worth nothing; set its host in the code, to ${proxy}`;
    warn(text);
    if (strict) throw new Error(text);
  }
}

function install() {
  const steps = new Map();
  if (holdsKey('STRIPE_API_KEY', 'STRIPE_SECRET_KEY')) steps.set('stripe', stripe);
  if (holdsKey('TWILIO_AUTH_TOKEN')) steps.set('twilio', twilio);
  if (!steps.size) return;
  const Module = require('module');
  const load = Module._load;
  Module._load = function (request, ...rest) {
    const exported = load.call(this, request, ...rest);
    const name = steps.has(request) ? request : (ENTRY.exec(request) || [])[1] || recognise(exported);
    // A module under way in a circle of imports is not whole yet; its first import steers it.
    if (steps.has(name) && typeof exported === 'function') steer(name, steps.get(name), exported);
    return exported;
  };
  if (steps.has('stripe')) watchImports(Module);
  watchCalls(steps);
}

// `import Stripe from 'stripe'` loads another build, which no require sees: its last line hands it to us.
function watchImports(Module) {
  Object.defineProperty(globalThis, Symbol.for('kbctl.shim'), {
    value: (Stripe) => steer('stripe', stripe, Stripe),
  });
  const hooks = require('path').join(__dirname, 'hooks.mjs');
  const { pathToFileURL } = require('url');
  try {
    if (typeof Module.register !== 'function') throw new Error(`Node ${process.version} has no module.register`);
    Module.register(pathToFileURL(hooks).href);
  } catch (error) {
    warn(`stripe can be steered to the proxy where it is required, not where it is imported (${error.message})`);
  }
}

// What goes around us all the same, bundled or by fetch, is at least said.
function watchCalls(steps) {
  let channels;
  try {
    channels = require('diagnostics_channel');
  } catch {
    return;
  }
  const tell = (host) => {
    for (const name of steps.keys()) {
      if (host === `${name}.com` || host.endsWith(`.${name}.com`)) {
        warn(`a call to ${host} goes around the proxy; a vault key is worth nothing there`);
      }
    }
  };
  channels.channel('http.client.request.start').subscribe(({ request }) => tell(String(request.host || '')));
  channels.channel('undici:request:create').subscribe(({ request }) => {
    try {
      tell(new URL(String(request.origin)).hostname);
    } catch {
      // no URL: nothing of ours
    }
  });
}

if (proxy && process.env.KBCTL_SHIM !== 'off') install();
