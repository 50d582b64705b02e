"""Steers SDKs that read no base URL from the environment to kbctl's proxy; ``kbctl run`` puts it in front.

What must stay true: it acts only in a process that holds a vault key, it changes nothing but where stripe and
twilio send their calls, and it never fails in silence: what can't be steered is said on stderr, and with
``KBCTL_SHIM=strict`` its import fails. A sitecustomize that was there before still runs. Plain Python 3.8.
"""

import os
import sys

_PROXY = os.environ.get("KBCTL_PROXY_URL", "").rstrip("/")
_STRICT = os.environ.get("KBCTL_SHIM") == "strict"
_MARK = "_kbctl_shim"
_LOCAL = ("127.0.0.1", "localhost", "[::1]")


class _CannotSteer(Exception):
    """Why an SDK is not as we know it."""


def _warn(text):
    try:
        sys.stderr.write("kbctl: WARNING: " + text + "\n")
        sys.stderr.flush()
    except Exception:  # noqa: BLE001, S110  # no stderr: the program goes on, as without us
        pass


def _holds_key(*names):
    return any(os.environ.get(name, "").startswith("vault_key_") for name in names)


def _to_proxy(url):
    """Whether a URL points to the proxy, under either of this machine's names."""
    if not isinstance(url, str):
        return False
    scheme, _, rest = url.partition("://")
    place = rest.partition("/")[0].lower()
    host, _, port = place.rpartition(":")
    own_scheme, _, own = _PROXY.partition("://")
    own_host, _, own_port = own.lower().rpartition(":")
    same = host == own_host or (host in _LOCAL and own_host in _LOCAL)
    return bool(port) and (scheme.lower(), port) == (own_scheme, own_port) and same


# --- stripe ---------------------------------------------------------------------------------------

_BASES = ("api_base", "connect_api_base", "upload_api_base", "meter_events_api_base")
_ADDRESSES = ("api", "connect", "files", "meter_events")


def _stripe_base(url):
    """A base URL without the version, which the SDK adds itself."""
    base = url.rstrip("/")
    for version in ("/v1", "/v2"):
        if base.endswith(version):
            base = base[: -len(version)]
    return base


def _own_stripe_base():
    said = os.environ.get("STRIPE_BASE_URL", "")
    return _stripe_base(said if _to_proxy(said) else _PROXY + "/stripe")


def _stripe(module):
    """``stripe``: the key and the bases of the module, and ``stripe.base_url = ...``."""
    base = _own_stripe_base()
    names = vars(module)
    if not isinstance(names.get("api_base"), str):
        raise _CannotSteer("it has no api_base")
    for name in _BASES:
        # The others go the same way: the proxy refuses what they are for, the vendor would see our key.
        if name in names:
            names[name] = base
    if names.get("api_key") is None:
        names["api_key"] = os.environ.get("STRIPE_API_KEY")
    kind = type(module)
    if not getattr(kind, _MARK, False):
        module.__class__ = type(kind.__name__, (kind,), {_MARK: True, "__setattr__": _set_on_stripe})


def _set_on_stripe(module, name, value):
    if name == "base_url" and value is not None:
        if _to_proxy(value):
            vars(module)["api_base"] = _stripe_base(value)
        else:
            _warn(
                "stripe.base_url = %r does not point to the proxy and was not followed; calls go to %s"
                % (value, vars(module)["api_base"])
            )
    elif name in _BASES and not _to_proxy(value):
        _warn("stripe.%s = %r leads around the proxy; a vault key is worth nothing there" % (name, value))
    vars(module)[name] = value


def _stripe_client(module):
    """``stripe._stripe_client``: where a client goes, and the ``base_url`` that it does not take itself."""
    kind = module.StripeClient
    original = kind.__init__
    if getattr(original, _MARK, False):
        return
    code = getattr(original, "__code__", None)
    if code is None or "base_addresses" not in code.co_varnames:
        raise _CannotSteer("StripeClient takes no base_addresses")

    def __init__(self, *args, **options):  # noqa: N807
        base = _own_stripe_base()
        url = options.pop("base_url", None)
        if url is not None:
            if _to_proxy(url):
                base = _stripe_base(url)
            else:
                _warn(
                    "StripeClient(base_url=%r) does not point to the proxy; its calls go to %s" % (url, base)
                )
        given = options.get("base_addresses") or {}
        for name in given:
            if given[name] is not None and not _to_proxy(given[name]):
                _warn(
                    "StripeClient(base_addresses={%r: %r}) leads around the proxy; a vault key is worth "
                    "nothing there" % (name, given[name])
                )
        addresses = dict.fromkeys(_ADDRESSES, base)
        addresses.update({name: value for name, value in given.items() if value is not None})
        options["base_addresses"] = addresses
        original(self, *args, **options)

    setattr(__init__, _MARK, True)
    __init__.__wrapped__ = original  # type: ignore[attr-defined]  # what inspect.signature shows
    __init__.__doc__ = original.__doc__
    __init__.__qualname__ = original.__qualname__
    kind.__init__ = __init__


# --- twilio ---------------------------------------------------------------------------------------


def _twilio(module):
    """``twilio.rest`` and what is below it: every product's host, under the proxy."""
    for name in ("Client", "ClientBase"):
        for kind in getattr(vars(module).get(name), "__mro__", ()):
            original = vars(kind).get("get_hostname")
            if callable(original):
                if not getattr(original, _MARK, False):
                    kind.get_hostname = _get_hostname(original)
                return
    raise _CannotSteer("its client has no get_hostname")


def _get_hostname(original):
    def get_hostname(self, uri):
        host = uri.partition("://")[2].partition("/")[0]
        if uri.startswith("https://") and (host + ".").endswith(".twilio.com."):
            return _PROXY + "/twilio/" + uri[len("https://") :]
        if not _to_proxy(uri):
            _warn("a call of twilio to %s leads around the proxy; a vault key is worth nothing there" % host)
        return uri

    setattr(get_hostname, _MARK, True)
    get_hostname.__wrapped__ = original  # type: ignore[attr-defined]
    get_hostname.__doc__ = original.__doc__
    return get_hostname


# --- how it is put in place -------------------------------------------------------------------------


def _steer(module, steer):
    name = module.__name__
    try:
        steer(module)
    except Exception as error:  # noqa: BLE001  # whatever it is, it must be said
        why = error if isinstance(error, _CannotSteer) else "%s: %s" % (type(error).__name__, error)
        text = (
            "this version of %s can't be steered to the proxy (%s): its calls go to the vendor itself, where "
            "a vault key is worth nothing; set its base URL in the code, under %s" % (name, why, _PROXY)
        )
        _warn(text)
        if _STRICT:
            raise ImportError(text, name=name) from None


class _AfterImport:
    """Finds what others find, and adds one step after the module has run."""

    def __init__(self, steps):
        self._steps = steps

    def find_spec(self, name, path=None, target=None):
        steer = self._steps.get(name)
        if steer is None:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, steer)
                return spec
        return None


class _Loader:
    """A loader of somebody else's, and one step after it."""

    def __init__(self, inner, steer):
        self._inner = inner
        self._steer = steer

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def create_module(self, spec):
        create = getattr(self._inner, "create_module", None)
        return create(spec) if create else None

    def exec_module(self, module):
        # As if we had never been there, for whoever asks a module how it was loaded.
        module.__spec__.loader = module.__loader__ = self._inner
        self._inner.exec_module(module)
        _steer(module, self._steer)


def _install():
    steps = {}
    if _holds_key("STRIPE_API_KEY", "STRIPE_SECRET_KEY"):
        steps.update({"stripe": _stripe, "stripe._stripe_client": _stripe_client})
    if _holds_key("TWILIO_AUTH_TOKEN"):
        steps.update({"twilio.base.client_base": _twilio, "twilio.rest": _twilio})
    if not steps:
        return
    for name in steps:
        if name in sys.modules:
            _steer(sys.modules[name], steps[name])
    sys.meta_path.insert(0, _AfterImport(steps))


def _chain():
    """Run the sitecustomize that would have run without us."""
    from importlib.machinery import PathFinder

    here = os.path.dirname(os.path.abspath(__file__))
    others = [path for path in sys.path if os.path.abspath(path or os.curdir) != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    from importlib.util import module_from_spec

    module = module_from_spec(spec)
    if __name__ == "sitecustomize":
        sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


if _PROXY and os.environ.get("KBCTL_SHIM") != "off":
    _install()
_chain()
