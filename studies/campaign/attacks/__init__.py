"""The attacks, in the order of the campaign; each file has one kind."""

from studies.campaign.attack import Attack
from studies.campaign.attacks import (
    bombs,
    disconnects,
    extremes,
    hangs,
    junk,
    kills,
    monopolies,
    overload,
    silence,
    slow_readers,
    soak,
)

ATTACKS = (
    Attack("disconnects", disconnects.attack, 60),
    Attack("overload", overload.attack, 60, allowed=frozenset({"429"}), patience=30.0),
    Attack("slow readers", slow_readers.attack, 30),
    Attack("junk", junk.attack, 30),
    Attack("extreme values", extremes.attack, 45),
    Attack("monopolies", monopolies.attack, 120, short=60),
    Attack("bombs", bombs.attack, 15),
    Attack("silence", silence.attack, 75),
    Attack("soak", soak.attack, 150, short=4.0),
    Attack("kills", kills.attack, 90, short=1.0, patience=60.0),
    Attack("hangs", hangs.attack, 45, short=60.0, patience=60.0),
)
