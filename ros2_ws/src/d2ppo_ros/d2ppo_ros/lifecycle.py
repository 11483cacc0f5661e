"""A life-cycle node that can start itself: what checks, configures; what acts, waits until it is activated."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from d2ppo_core.errors import UserError

LOOK = 0.05  # s: how often a node that starts itself looks whether it can go on


class AutoNode(LifecycleNode):
    """Base of the camera's and the policy's node: they fill in `configure`, `ready` and `activate`.

    With `autostart` it configures itself at once, and activates itself as soon as `ready` says that what it needs has
    come. A `UserError` on the way is fatal then: it is printed, and the process ends with exit code 2. Without
    autostart whoever asked for the transition is told that it failed, the log says why, and it may be tried again.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.configured = self.active = self.autostart = False
        self.finished, self.code, self.error = threading.Event(), 0, ""

    def begin(self, autostart: bool) -> None:
        """To be called last in the constructor."""
        self.autostart = autostart
        if autostart:
            self._starting = self.create_timer(LOOK, self._go_on)

    def configure(self) -> None:
        """Check everything that can be checked; make topics. Raises a `UserError`."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether what activation looks at has come."""
        return True

    def activate(self) -> None:
        """Last checks before acting. Raises a `UserError`."""

    def _go_on(self) -> None:
        if self.active or self.finished.is_set():
            self._starting.cancel()
        elif not self.configured:
            self.trigger_configure()
        elif self.ready():
            self.trigger_activate()

    def _attempt(self, work: Callable[[], None]) -> TransitionCallbackReturn:
        """A transition's work; its `UserError` is the reason why the transition fails."""
        try:
            work()
        except UserError as error:
            self.error = str(error)
            self.get_logger().error(self.error)
            if self.autostart:
                self.code = 2
                self.finished.set()
            return TransitionCallbackReturn.FAILURE
        self.error = ""
        return TransitionCallbackReturn.SUCCESS

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """ROS asks for `configure`."""
        self._before = {*self.subscriptions, *self.publishers, *self.timers}
        result = self._attempt(self.configure)
        self.configured = result == TransitionCallbackReturn.SUCCESS
        if not self.configured:
            self._forget()
        return result

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """ROS asks to undo it."""
        self.configured = False
        self._forget()
        return super().on_cleanup(state)

    def _forget(self) -> None:
        """Destroy what `configure` made."""
        for made in {*self.subscriptions} - self._before:
            self.destroy_subscription(made)
        for made in {*self.publishers} - self._before:
            self.destroy_publisher(made)
        for made in {*self.timers} - self._before:
            self.destroy_timer(made)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """ROS asks for `activate`."""
        result = self._attempt(self.activate)
        if result == TransitionCallbackReturn.SUCCESS:
            result = super().on_activate(state)
        self.active = result == TransitionCallbackReturn.SUCCESS
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """ROS asks to stop acting."""
        self.active = False
        return super().on_deactivate(state)
