// Part of register.cjs: where stripe is imported rather than required, its last line hands it to the shim.

const ENTRY = /\/esm\/stripe\.esm\.node\.js$/;

export async function load(url, context, next) {
  const loaded = await next(url, context);
  if (!ENTRY.test(url) || loaded.format !== 'module' || loaded.source == null) return loaded;
  const source = typeof loaded.source === 'string' ? loaded.source : new TextDecoder().decode(loaded.source);
  return { ...loaded, source: `${source}\n;globalThis[Symbol.for('kbctl.shim')]?.(Stripe);\n` };
}
