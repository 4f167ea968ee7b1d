"""Which loop the suite runs on, and how CPython's own test classes are made to build it.

Three things are done to a freshly started interpreter before it runs a module of `test.test_asyncio`:

- `make_default` puts the chosen loop behind every public door that makes one: `asyncio.new_event_loop`,
  `asyncio.run`, `asyncio.Runner`, `IsolatedAsyncioTestCase`, and the classes `asyncio.SelectorEventLoop` and
  `asyncio.EventLoop`, which tests call as constructors.
- `forward_patches` lets the mocks that tests put into asyncio's modules reach the modules of the chosen loop.
- `bind` puts one class on the chosen loop in the place of CPython's concrete classes of a loop-facing mixin
  (one for each selector, or for each child watcher), and gives the chosen loop to the classes that build a
  bare `BaseEventLoop`.

Nothing inside asyncio is replaced: its own modules keep their own `BaseEventLoop`, so mock loops built on it
still work.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import types
import unittest
from asyncio import base_events, unix_events
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

LOOPS = {
    "asyncio": ("asyncio", "SelectorEventLoop", "SelectorEventLoop"),
    "unwait": ("unwait", "new_event_loop", "Loop"),
    "uvloop": ("uvloop", "new_event_loop", "Loop"),
}
"""name on the command line → (module, factory, class)"""


@dataclass
class ChosenLoop:
    """The loop under test: `factory` makes one and counts it in `built`; `cls` is its class."""

    name: str
    make: LoopFactory
    cls: type
    built: int = 0

    def factory(self) -> asyncio.AbstractEventLoop:
        self.built += 1
        return self.make()


def choose(name: str) -> ChosenLoop:
    """The loop called `name` in `LOOPS`. Raises ImportError where it is not installed."""
    module_name, factory, cls = LOOPS[name]
    module = importlib.import_module(module_name)
    return ChosenLoop(name, getattr(module, factory), getattr(module, cls))


def unavailable(name: str) -> str | None:
    """Why the loop called `name` cannot be tested here, or None."""
    try:
        choose(name)
    except ImportError as error:
        return f"the loop {name!r} cannot be imported: {error}"
    if name == "unwait" and not importlib.import_module("unwait.loop").COMPILED:
        return (
            "unwait's loop is not compiled for this interpreter (unwait.loop.COMPILED is False), so this run "
            "would only test asyncio's own; build it (pip install .), or say --loop asyncio"
        )
    return None


def constructor(loop: ChosenLoop, name: str) -> type:
    """A class called `name` whose call makes the chosen loop, and whose instances are the chosen loop's."""

    class Meta(type):
        def __call__(cls, selector: Any = None) -> asyncio.AbstractEventLoop:
            if selector is not None:
                selector.close()
            return loop.factory()

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, loop.cls)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, loop.cls)

    return Meta(name, (), {})


def make_default(loop: ChosenLoop) -> None:
    """Make the chosen loop what every public way to get a new loop returns, in this process."""
    # The tests' own mock loop derives from asyncio's; it has to exist before the name means something else.
    utils = importlib.import_module("test.test_asyncio.utils")
    for name in ("SelectorEventLoop", "EventLoop"):
        for module in (asyncio, unix_events):
            if hasattr(module, name):
                setattr(module, name, constructor(loop, name))

    policies = [
        getattr(unix_events, name, None)
        for name in ("_UnixDefaultEventLoopPolicy", "_DefaultEventLoopPolicy")
    ]
    for policy in filter(None, policies):
        policy._loop_factory = staticmethod(loop.factory)
    if not any(policies):
        asyncio.new_event_loop = asyncio.events.new_event_loop = loop.factory
    made = asyncio.new_event_loop()
    made.close()
    if not isinstance(made, loop.cls):
        raise RuntimeError(f"asyncio.new_event_loop() gave {made!r}, not a {loop.cls.__qualname__}")

    forward_patches(loop)

    close_mock_loop = utils.TestCase.close_loop

    def close_loop(made: asyncio.AbstractEventLoop) -> None:
        # CPython's helper looks at the private `_default_executor`.
        if isinstance(made, base_events.BaseEventLoop):
            close_mock_loop(made)
        elif not made.is_closed():
            made.run_until_complete(made.shutdown_default_executor())
            made.close()

    utils.TestCase.close_loop = staticmethod(close_loop)


class OnChosenLoop:
    """The two hooks by which CPython's mixins ask for a loop."""

    def create_event_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    new_loop = create_event_loop


class SetsUpChosenLoop(OnChosenLoop):
    """For a mixin that expects its concrete classes to make the loop in `setUp`."""

    def setUp(self: Any) -> None:
        super().setUp()  # type: ignore[misc]
        self.loop = self.create_event_loop()
        self.set_event_loop(self.loop)


def forward_patches(loop: ChosenLoop) -> None:
    """Let a test that replaces a module in asyncio's namespace replace it in the chosen loop's modules too.

    Tests put mocks at `asyncio.base_events.socket`, `asyncio.unix_events.signal` and the like, to bring about
    errors that are hard to come by. What they then assert is behaviour; only the place is asyncio's.
    """
    package = loop.cls.__module__.rpartition(".")[0]
    if not package or package == "asyncio":
        return
    targets = [module for name, module in sys.modules.items() if name.startswith(f"{package}.")]

    class Forwarding(types.ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            current = vars(self).get(name)
            super().__setattr__(name, value)
            for target in targets:
                if current is not None and vars(target).get(name) is current:
                    setattr(target, name, value)

    for source in (base_events, unix_events):
        source.__class__ = Forwarding


@dataclass(frozen=True)
class Binding:
    """One concrete class, `name`, to be made of the classes `mixins` of a test module and `on`, which makes
    the loop.
    """

    name: str
    mixins: tuple[str, ...]
    on: type = OnChosenLoop


BINDINGS = {
    "test_buffered_proto": Binding("BufferedProtocolTests", ("BaseTestBufferedProtocol",)),
    "test_events": Binding("EventLoopTests", ("EventLoopTestsMixin", "SubprocessTestsMixin")),
    "test_sendfile": Binding("SendfileTests", ("SendfileMixin", "SockSendfileMixin")),
    "test_server": Binding("StartServerTests", ("SelectorStartServerTests", "BaseStartServer")),
    "test_sock_lowlevel": Binding("SockTests", ("BaseSockTestsMixin",)),
    "test_sslproto": Binding("StartTLSTests", ("BaseStartTLS",)),
    "test_subprocess": Binding("SubprocessTests", ("SubprocessMixin",), SetsUpChosenLoop),
}
"""test module → its binding. The mixins' watcher-specific subclasses are left out: watchers are asyncio's own
affair.
"""


BARE_LOOPS = {
    "test_base_events": ("BaseEventLoopTests", "BaseLoopSockSendfileTests"),
    "test_pep492": ("BaseTest",),
}
"""test module → classes whose `setUp` makes a loop of asyncio's base class, which cannot wait, with a mock
for a selector
"""


@dataclass
class Bound:
    """What `bind` did: `mixin_of` names the mixin of each bound test, `replaced` CPython's own classes of the
    bound one.

    `lost` lists tests of replaced classes which the bound class does not have; there should be none.
    """

    name: str = ""
    mixin_of: dict[str, str] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def test_names(cls: type) -> set[str]:
    return {name for name in dir(cls) if name.startswith("test") and callable(getattr(cls, name))}


def bind(module: types.ModuleType, loop: ChosenLoop) -> Bound:
    """Add the module's bound class to it, and give the chosen loop to its classes in `BARE_LOOPS`."""
    short = module.__name__.rpartition(".")[2]
    for name in BARE_LOOPS.get(short, ()):
        if hasattr(module, name):
            give_loop(getattr(module, name), loop)
    if short == "test_runners":
        give_policy_loop(module, loop)
    binding = BINDINGS.get(short)
    return bind_mixins(module, short, binding) if binding else Bound()


def bind_mixins(module: types.ModuleType, short: str, binding: Binding) -> Bound:
    mixins = tuple(getattr(module, name) for name in binding.mixins)
    utils = importlib.import_module("test.test_asyncio.utils")
    base = () if any(issubclass(mixin, unittest.TestCase) for mixin in mixins) else (utils.TestCase,)
    cls = types.new_class(binding.name, (binding.on, *mixins, *base))
    cls.__module__ = module.__name__

    bound = Bound(binding.name)
    names = test_names(cls)
    for name in names:
        owner = next(parent for parent in cls.__mro__ if name in vars(parent))
        bound.mixin_of[f"{short}.{binding.name}.{name}"] = owner.__name__
    for name, other in list(vars(module).items()):
        if isinstance(other, type) and issubclass(other, unittest.TestCase) and issubclass(other, mixins):
            bound.replaced.append(name)
            if not getattr(other, "__unittest_skip__", False):
                bound.lost.extend(f"{short}.{name}.{test}" for test in sorted(test_names(other) - names))
    setattr(module, binding.name, cls)
    return bound


MOCKED = ("_process_events", "_selector", "_write_to_self")
"""attributes that the tests of `BARE_LOOPS` set, because a bare `BaseEventLoop` lacks them"""


class IgnoresMocks:
    """Mixed into a loop class: a loop that can wait by itself needs no mock to do it."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in MOCKED or not isinstance(value, mock.NonCallableMock):
            super().__setattr__(name, value)


class IteratesOnce:
    """Mixed into a loop class that is not asyncio's: what asyncio calls `_run_once`, by public means."""

    def _run_once(self: Any) -> None:
        self.call_soon(self.stop)
        self.run_forever()


def give_loop(cls: Any, loop: ChosenLoop) -> None:
    """Let the class's `setUp` put the chosen loop in the place of the one that it made."""
    set_up = cls.setUp
    mixins = (IgnoresMocks,) if loop.name == "asyncio" else (IgnoresMocks, IteratesOnce)
    loop_class = types.new_class(loop.cls.__name__, (*mixins, loop.cls))

    def setUp(self: Any) -> None:
        set_up(self)
        self.loop = loop_class()
        loop.built += 1
        self.set_event_loop(self.loop)

    cls.setUp = setUp


def give_policy_loop(module: types.ModuleType, loop: ChosenLoop) -> None:
    """Let `test_runners.BaseTest` run the chosen loop, still noting that a runner shut its async generators
    down.
    """

    def new_loop(self: object) -> Any:
        made: Any = loop.factory()
        made.shutdown_ag_run = False
        shutdown = made.shutdown_asyncgens

        async def shutdown_asyncgens() -> None:
            made.shutdown_ag_run = True
            await shutdown()

        made.shutdown_asyncgens = shutdown_asyncgens
        return made

    module.BaseTest.new_loop = new_loop
