"""The `auto` profile: which of a policy's schedules a decode step runs under, from what each gains at this batch size.

`profile` is what the policy file says, `speedup` what a level gains and where that is known from, `controller` the
choice, step by step. Pure: neither torch nor sglang.
"""

from sglang_moe_opt.auto.controller import Controller
from sglang_moe_opt.auto.profile import AUTO, AutoProfile, AutoRule, AutoSchedule
from sglang_moe_opt.auto.speedup import SpeedModel

__all__ = ["AUTO", "AutoProfile", "AutoRule", "AutoSchedule", "Controller", "SpeedModel"]
