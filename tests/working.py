"""A simulated group of volumes that do works together: the works (group/work.py) as they are, and
around them at random: when something is durable, heard, late, lost with a connection or a crash.

A crash leaves `rows` and `applied`, what is durable; all else is gone. Users ask all the time: they
are answered by a volume that keeps nobody out, and what they may see is checked there.
"""

from collections import Counter, deque
from itertools import combinations

from raidfs.group.charter import Able, Agreed, Work, WorkAsked
from raidfs.group.work import Works
from raidfs.group.work_events import (
    INTENT,
    VERDICT,
    Cancel,
    Do,
    Down,
    Drop,
    Dropped,
    Ended,
    Failed,
    Finished,
    Free,
    Heard,
    Keep,
    Kept,
    Prepare,
    Prepared,
    Refuse,
    Rejected,
    Resolve,
    Send,
    Start,
    StartTimer,
    Up,
)

IDS = [f"{number:02x}" * 16 for number in range(10, 15)]
# What is done wrong on purpose, and what the checker has to say of it.
SABOTAGES = {
    "the verdict is not durable": ("in some", "as it was"),
    "the agreement is not durable": ("in some", "as it was"),
    "released early": ("as it was",),  # users go on when the time is over
    "not kept out after a crash": ("as it was",),
    "released before all are done": ("before the last",),
    "not one step": ("twice",),  # the work, and the end of the promise
    "no answer to who asks": ("no end", "wait for ever"),
    "users wait for ever": ("wait for ever",),
}


class Violation(AssertionError):
    pass


class Volume:
    def __init__(self, world, me):
        self.world, self.me = world, me
        self.rows = {}  # (kind, number) -> work
        self.applied = Counter()  # number -> times
        self.up = False
        self.is_gone = False  # for ever
        self.is_broken = False  # what is durable isn't known before a restart

    def start(self):
        self.up, self.is_broken = True, False
        self.tasks = deque()  # what takes time, in its order: callables
        self.shut = {}  # number -> users are refused (or wait, if False)
        kept = [(kind, work) for (kind, _), work in self.rows.items()]
        self.works, begin = Works.recover(self.me, kept)
        self.carry(begin)

    def crash(self):
        self.up = False
        for peer in self.world.volumes:
            if peer != self.me:
                self.world.lose(self.me, peer)
                self.world.sessions.pop((self.me, peer), None)

    def give(self, event):
        self.carry(self.works.handle(event))

    def carry(self, actions):
        sabotage = self.world.sabotage
        for action in actions:
            match action:
                case Send(peer, message):
                    self.world.send(self.me, peer, message)
                case Prepare(work, again):
                    if not again:
                        self.tasks.append(lambda work=work: self._prepare(work))
                    elif work.verb == "rollback" and sabotage != "not kept out after a crash":
                        self.shut[work.work] = False
                case Free(number):
                    self.shut.pop(number, None)
                case Refuse(work, why):
                    assert why
                    if sabotage == "released early":
                        self.shut.pop(work.work, None)
                    elif work.work in self.shut and sabotage != "users wait for ever":
                        self.shut[work.work] = True
                case Keep(work, kind):
                    self.tasks.append(lambda work=work, kind=kind: self._keep(work, kind))
                case Drop(number, kind):
                    self.tasks.append(lambda number=number, kind=kind: self._drop(number, kind))
                case Do(work):
                    if work.work in self.shut:
                        self.shut[work.work] = False
                    self.tasks.append(lambda work=work: self._do(work))
                case StartTimer(event, _):
                    self.world.timers.append((self, self.works, event))
                case Finished(number, undone, why):
                    self.world.finished(number, undone, why)
                case Rejected(_, why):
                    raise Violation(f"rejected: {why}")

    # -- what takes time --------------------------------------------------------------------------

    def _prepare(self, work):
        if work.work not in self.works.parts:
            return  # it was given up meanwhile
        if self.world.unruly(0.05):
            self.give(Failed(work.work, "no"))
            return
        if work.verb == "rollback":
            self.shut[work.work] = False
        self.give(Prepared(work.work))

    def _keep(self, work, kind):
        lost = {INTENT: "the agreement is not durable", VERDICT: "the verdict is not durable"}
        failed = self.world.unruly(0.03)
        written = self.world.sabotage != lost[kind]
        if written and not (failed and self.world.chance.random() < 0.5):
            self.rows[kind, work.work] = work
        self.is_broken |= failed
        self.give(Failed(work.work, "disk") if failed else Kept(work.work, kind))

    def _drop(self, number, kind):
        self.rows.pop((kind, number), None)
        self.give(Dropped(number, kind))

    def _do(self, work):
        if self.world.unruly(0.1):
            self.give(Failed(work.work, "no room"))
            return
        self.applied[work.work] += 1
        if self.applied[work.work] > 1:
            raise Violation(f"done twice in {self.me}")
        if self.world.sabotage == "not one step":
            self.tasks.append(lambda: self._end(work))
            return
        self._end(work)

    def _end(self, work):
        self.rows.pop((INTENT, work.work), None)
        if self.world.sabotage == "released before all are done":
            self.shut.pop(work.work, None)
        self.give(Ended(work.work))


class World:
    def __init__(self, chance, count, sabotage="", losses=True):
        """`losses`: crashes and connections that end; without them promise 4 is strict."""
        self.chance, self.sabotage, self.losses = chance, sabotage, losses
        self.volumes = {me: Volume(self, me) for me in IDS[:count]}
        self.channels = {}  # (from, to) -> messages of the session
        self.alive = {}  # pair -> session
        self.sessions = {}  # (me, peer) -> session, as far as `me` has heard
        self.timers = []
        self.calm = False
        self.is_late = False  # a limit that ends waiting is over
        self.works = {}
        self.told = {}  # number -> why it was done nowhere, or ""
        self.figures = Counter()
        self.numbers = iter(range(1, 1 << 30))
        for volume in self.volumes.values():
            volume.start()

    def unruly(self, part):
        """It goes wrong."""
        return not self.calm and self.losses and self.chance.random() < part

    # -- connections ------------------------------------------------------------------------------

    def send(self, me, peer, message):
        session = self.sessions.get((me, peer))
        if session is not None and self.alive.get(frozenset((me, peer))) == session:
            self.channels[me, peer].append(message)

    def lose(self, one, other):
        self.alive.pop(frozenset((one, other)), None)
        self.channels[one, other], self.channels[other, one] = deque(), deque()

    def connect(self, one, other):
        """Each hears of it in its own time."""
        self.alive[frozenset((one, other))] = next(self.numbers)
        self.channels[one, other], self.channels[other, one] = deque(), deque()

    def rise(self, me, peer):
        self.sessions[me, peer] = self.alive[frozenset((me, peer))]
        self.volumes[me].give(Up(peer))

    def fall(self, me, peer):
        del self.sessions[me, peer]
        self.volumes[me].give(Down(peer))

    def hear(self, me, peer):
        """Of what the peer has sent, the first."""
        message = self.channels[peer, me].popleft()
        volume = self.volumes[me]
        asks = isinstance(message, Able | Agreed | WorkAsked)
        unknown = asks and message.work not in volume.works.votes
        if unknown and self.sabotage == "no answer to who asks":
            return
        volume.give(Heard(peer, message))

    def link_steps(self, one, other):
        """What may happen next between two."""
        pair = frozenset((one, other))
        found = []
        for me, peer in ((one, other), (other, one)):
            if not self.volumes[me].up:
                continue
            session, alive = self.sessions.get((me, peer)), self.alive.get(pair)
            if session is not None and session != alive:
                found.append(lambda me=me, peer=peer: self.fall(me, peer))
            elif session is None and alive is not None:
                found.append(lambda me=me, peer=peer: self.rise(me, peer))
            elif session is not None and self.channels[peer, me]:
                found += [lambda me=me, peer=peer: self.hear(me, peer)] * 2
        both = self.volumes[one].up and self.volumes[other].up
        if both and pair not in self.alive and not found:
            found.append(lambda: self.connect(one, other))
        return found

    # -- steps ------------------------------------------------------------------------------------

    def steps(self):
        """What goes on by itself."""
        found = []
        for volume in self.volumes.values():
            if not volume.up and not volume.is_gone:
                found.append(volume.start)
            elif volume.up and volume.tasks:
                found += [lambda volume=volume: volume.tasks.popleft()()] * 2
            elif volume.up and volume.is_broken and self.calm:
                found.append(volume.crash)
        for one, other in combinations(self.volumes, 2):
            found += self.link_steps(one, other)
        return found

    def disturb(self):
        """What need not happen."""
        dice = self.chance.random()
        if dice < 0.25:
            self.begin()
        elif dice < 0.35:
            self.timer()
        elif self.losses and dice < 0.40:
            volume = self.chance.choice([*self.volumes.values()])
            if volume.up:
                self.figures["crashes"] += 1
                volume.crash()
        elif self.losses and dice < 0.45:
            self.lose(*self.chance.sample([*self.volumes], 2))
        elif self.losses and dice < 0.47 and self.works:
            number = self.chance.choice([*self.works])
            coordinator = self.volumes[self.works[number].coordinator]
            if coordinator.up:
                coordinator.give(Cancel(number))

    def timer(self):
        at = self.chance.randrange(len(self.timers)) if self.timers else None
        if at is None:
            return False
        volume, works, event = self.timers.pop(at)
        if volume.up and volume.works is works:
            self.is_late |= event.name == "done" and event.work in works.votes
            volume.give(event)
        return True

    def begin(self):
        coordinator = self.chance.choice([*self.volumes.values()])
        if not coordinator.up or len(self.works) > 6:
            return
        number = next(self.numbers).to_bytes(16, "big")
        verb = self.chance.choice(["rollback", "rollback", "delete"])
        work = Work(number, verb, number, "s", coordinator.me, tuple(self.volumes))
        self.works[number] = work
        coordinator.give(Start(work))

    def finished(self, number, undone, why):
        if number in self.told:
            raise Violation("whoever asked is told twice")
        self.told[number] = why
        self.figures["done" if not why else "not done"] += 1
        self.figures["pending"] += bool(undone)

    # -- what must be true ------------------------------------------------------------------------

    def ask(self, volume):
        """By a user; promises 3 and 4."""
        if not volume.up or volume.shut:
            return
        for number, work in self.works.items():
            there = [one for one in self.volumes.values() if not one.is_gone]
            done = sum(one.applied[number] for one in there)
            if work.verb == "delete" or not done:
                continue
            if not volume.applied[number]:
                raise Violation(f"{volume.me} is shown as it was, another was changed")
            if not self.losses and not self.is_late and done < len(self.volumes):
                raise Violation("users are let in before the last volume is done")

    def step(self, steps):
        self.chance.choice(steps)()
        for volume in self.volumes.values():
            self.ask(volume)

    def settle(self):
        """Nothing bad and nothing new happens any more; time passes when nothing else does."""
        self.calm = True
        for _ in range(20_000):
            steps = self.steps()
            if steps:
                self.step(steps)
            elif not self.timer():
                return
        raise Violation("no end of it")

    def run(self, steps):
        for _ in range(steps):
            own = self.steps()
            if own and self.chance.random() < 0.8:
                self.step(own)
            else:
                self.disturb()
        self.settle()

    def check_nobody_waits(self):
        for volume in self.volumes.values():
            if volume.up and False in volume.shut.values():
                raise Violation(f"users of {volume.me} wait for ever")

    def resolve(self):
        """By an administrator who looks what became of each work where it can be seen."""
        for number in self.works:
            living = [one for one in self.volumes.values() if one.up]
            go = any(one.applied[number] or number in one.works.votes for one in living)
            for one in living:
                part, vote = one.works.parts.get(number), one.works.votes.get(number)
                if (part and part.state == "agreed") or (vote and vote.state == "doing"):
                    self.figures["resolved"] += 1
                    one.give(Resolve(number, go))

    def check_end(self):
        """All who are there have done the same, and nothing is left."""
        self.check_nobody_waits()
        living = [one for one in self.volumes.values() if one.up]
        for number in self.works:
            times = {one.applied[number] for one in living}
            if len(times) > 1:
                raise Violation(f"done in some volumes only: {times}")
            if number in self.told and not self.told[number].startswith("it is in doubt"):
                if not self.told[number] and 0 in times:
                    raise Violation("in some it was said to be done, and is not")
                if self.told[number] and 1 in times:
                    raise Violation("in some it was said not to be done, and is")
        for one in living:
            left = [*one.works.parts.values(), *one.works.votes.values()]
            if left or one.rows or one.shut:
                states = [(type(each).__name__, each.state) for each in left]
                raise Violation(f"no end of it: {states}, {[*one.rows]}, {one.shut}")


__all__ = ["IDS", "SABOTAGES", "Violation", "World"]
