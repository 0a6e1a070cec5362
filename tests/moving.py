"""A simulated group of volumes: the marker process and both sides of moves as they are, and all
around them at random: when something is durable, heard, changed, lost in a crash or a connection.

What a crash leaves is the last state that was made durable. A *token* is a file; `shown` tells what
its content is, by a number never used before.
"""

import copy
from collections import deque

from raidfs.group import events as e
from raidfs.group import move as m
from raidfs.group.marker import Process
from raidfs.group.messages import HiddenKept, Plan, Roster, Transfer, VisibleKept

IDS = ["0a" * 16, "0b" * 16, "0c" * 16]
SABOTAGES = (
    "not hidden again", "given before the row is durable", "taken said early",
    "not recorded", "not delivered", "not repeated", "not recorded when unlinked",
)  # fmt: skip


class Violation(AssertionError):
    pass


class State:
    """All that a crash takes back to what it was when it was durable."""

    def __init__(self):
        self.shown = {}  # token -> content
        self.hidden = {}  # move -> (token, content), at the source
        self.staged = {}  # move -> (token, content), at the target
        self.rows = {}  # (kind, move) -> row
        self.cuts = {}  # snapshot -> (shown, staged)
        self.recorded = {}  # snapshot -> [(peer, Transfer)]
        self.kept = {}  # (snapshot, kind) -> what the marker process keeps
        self.visible = {}  # snapshot -> shown


class Volume:
    def __init__(self, world, me):
        self.world, self.me = world, me
        self.now, self.durable = State(), State()
        self.up = False

    # -- life -------------------------------------------------------------------------------------

    def start(self):
        self.up = True
        self.now = copy.deepcopy(self.durable)
        self.works = deque()  # what waits to be durable: callables
        self.cores, self.wants = {}, {}  # by (kind, move)
        for kind, table in (("out", self.now.hidden), ("in", self.now.staged)):
            for move in [one for one in table if (kind, one) not in self.now.rows]:
                del table[move]  # swept
        self.handling, self.events = False, deque()
        actions = []
        for (kind, move), row in list(self.now.rows.items()):
            if kind == "out":
                hidden = row.state == "giving" and self._hidden_again(move, row)
                self.cores[kind, move] = m.Source.recover(row, hidden=hidden)
            else:
                core, more = m.Target.recover(row, hidden=move in self.now.staged)
                self.cores[kind, move] = core
                actions.append((kind, move, more))
        kept = [VisibleKept(one) for one in self.now.visible] + list(self.now.kept.values())
        promised = {one for one, _ in self.now.kept}
        kept += [
            HiddenKept(one) for one in self.now.cuts if one not in promised | {*self.now.visible}
        ]
        self.process, begin = Process.recover(self.me, self.world.roster, kept)
        self._carry(begin)
        for kind, move, more in actions:
            self.act(kind, move, more)

    def _hidden_again(self, move, row):
        if move in self.now.hidden:
            return True
        token = row.name.decode()
        if str(self.now.shown.get(token)).encode() != row.stamp:
            return False
        if self.world.sabotage != "not hidden again":
            self.now.hidden[move] = (token, self.now.shown.pop(token))
        return True

    def crash(self):
        self.up = False
        for peer in IDS[: self.world.count]:
            self.world.lose(self.me, peer)

    def sync(self):
        self.durable = copy.deepcopy(self.now)

    # -- the marker process -----------------------------------------------------------------------

    def give(self, event):
        self.events.append(event)
        if self.handling:
            return
        self.handling = True
        while self.events:
            self._carry(self.process.handle(self.events.popleft()))
        self.handling = False

    def _carry(self, actions):
        sabotage, now = self.world.sabotage, self.now
        for action in actions:
            match action:
                case e.Cut(plan):
                    now.cuts[plan.snapshot] = (dict(now.shown), dict(now.staged))
                    ways = now.recorded[plan.snapshot] = []
                    for (kind, move), core in self.cores.items():
                        owned = kind == "in" and core.is_owned
                        if owned and sabotage != "not recorded when unlinked":
                            ways.append(m.transfer(move, m.Given(0, core.row.name)))
                case e.Send(peer, session, message):
                    self.world.send(self.me, peer, session, message)
                case e.Record(snapshot, _, message):
                    if sabotage != "not recorded":
                        now.recorded[snapshot].append(message)
                case e.Deliver(peer, message):
                    self._deliver(peer, message)
                case e.StartTimer(event, _):
                    self.world.timers.append((self, self.process, event))
                case e.Prepare(kept):
                    self._later(self._keep, kept.plan.snapshot, "prepared", kept, e.Durable)
                case e.Decide(kept):
                    self._later(self._keep, kept.plan.snapshot, "decision", kept, e.Decided)
                case e.Commit(snapshot):
                    self._later(self._commit, snapshot)
                case e.Discard(snapshot):
                    self._later(self._discard, snapshot)
                case e.Forget(snapshot):
                    self._later(lambda one=snapshot: self.now.kept.pop((one, "decision"), None))

    def _later(self, work, *arguments):
        self.works.append(lambda: work(*arguments))

    def _keep(self, snapshot, kind, kept, done):
        if kind == "prepared" and snapshot not in self.now.cuts:
            return
        self.now.kept[snapshot, kind] = kept
        self.sync()
        self.give(done(snapshot, 1, 1) if done is e.Durable else done(snapshot))

    def _discard(self, snapshot):
        for table in (self.now.cuts, self.now.recorded):
            table.pop(snapshot, None)
        self.now.kept.pop((snapshot, "prepared"), None)
        self.sync()

    def _commit(self, snapshot):
        given = []
        for message in self.now.recorded.get(snapshot, ()):
            if isinstance(m.payload_of(message), m.Given):
                given.append(message.move)
                if ("in", message.move) in self.cores:
                    self.tell("in", message.move, m.Heard(m.payload_of(message)))
                    if (
                        self.cores.get(("in", message.move))
                        and self.cores["in", message.move].is_owned
                    ):
                        self.link(message.move)
        if snapshot in self.now.cuts:
            shown, staged = self.now.cuts.pop(snapshot)
            for move in given if self.world.sabotage != "not delivered" else ():
                if move in staged:
                    token, content = staged.pop(move)
                    if token in shown:
                        raise Violation(f"{token} twice in a volume of a snapshot")
                    shown[token] = content
            self.now.visible[snapshot] = shown
        self.now.kept.pop((snapshot, "prepared"), None)
        self.sync()
        self.world.check(snapshot)
        self.give(e.Visible(snapshot))

    # -- moves ------------------------------------------------------------------------------------

    def _deliver(self, peer, message):
        payload = m.payload_of(message)
        to_target = isinstance(payload, m.Offered | m.Withdrawn | m.Given | m.Settled)
        kind = "in" if to_target else "out"
        if (kind, message.move) in self.cores:
            self.tell(kind, message.move, m.Heard(payload))
        elif isinstance(payload, m.Offered):
            if self.world.chance.random() < 0.1:
                self.say(peer, message.move, m.Refused("no"))
                return
            row = m.TargetRow("staging", peer, 0, payload.name, 1)
            core = self.cores["in", message.move] = m.Target(row)
            self.act("in", message.move, core.start())
        elif not to_target and (answer := m.answer_of_source(payload)):
            self.say(peer, message.move, answer)

    def say(self, peer, move, payload):
        self.give(e.Transmit(peer, m.transfer(move, payload)))

    def back(self, peer):
        for (kind, move), core in list(self.cores.items()):
            again = self.world.sabotage != "not repeated" or core.state not in ("given", "taken")
            if core.row.peer == peer and again:
                self.tell(kind, move, m.Up())

    def tell(self, kind, move, event):
        core = self.cores.get((kind, move))
        if core is not None:
            self.act(kind, move, core.handle(event))

    def act(self, kind, move, actions):
        sabotage = self.world.sabotage
        for action in actions:
            match action:
                case m.Send(payload):
                    self.say(self.cores[kind, move].row.peer, move, payload)
                case m.Keep(row):
                    early = {
                        "giving": "given before the row is durable",
                        "taken": "taken said early",
                    }
                    if sabotage == early.get(row.state):
                        self._later(self._row, kind, move, row, None)
                        self.tell(kind, move, m.Kept())
                    else:
                        self._later(self._row, kind, move, row, m.Kept())
                case m.Drop():
                    self._later(self._row, kind, move, None, m.Dropped())
                case m.Give() | m.Stage() | m.Link():
                    self.wants[kind, move] = action
                case m.Finish():
                    self.cores.pop((kind, move))
                    self.wants.pop((kind, move), None)
                    self.now.hidden.pop(move, None)
                    self.now.staged.pop(move, None)

    def _row(self, kind, move, row, event):
        if row is None:
            self.now.rows.pop((kind, move), None)
        else:
            self.now.rows[kind, move] = row
        self.sync()
        if event is not None:
            self.tell(kind, move, event)

    def want(self, key):
        """What a core asked to be done, if that can be now."""
        action, (kind, move) = self.wants[key], key
        core = self.cores.get(key)
        match action:
            case m.Give(stamp):
                token = core.row.name.decode()
                if core.state != "giving":
                    self.wants.pop(key)
                elif core.row.peer in self.process.sessions:
                    self.wants.pop(key)
                    content = self.now.shown.get(token)
                    if str(content).encode() != stamp:
                        self.tell(kind, move, m.Changed())
                        return
                    self.now.hidden[move] = (token, self.now.shown.pop(token))
                    self.tell(kind, move, m.GivenAway())
            case m.Link():
                self.link(move)
            case m.Stage():
                source = self.world.volumes[core.row.peer]
                token = core.row.name.decode()
                if core.state != "staging":
                    self.wants.pop(key)
                elif source.up and token in source.now.shown:
                    self.wants.pop(key)
                    content = source.now.shown[token]
                    self.now.staged[move] = (token, content)
                    self.sync()
                    self.tell(kind, move, m.Content(str(content).encode()))

    def link(self, move):
        self.wants.pop(("in", move), None)
        token, content = self.now.staged.pop(move)
        if token in self.now.shown:
            raise Violation(f"{token} is here already")
        self.now.shown[token] = content
        self.tell("in", move, m.Linked(token.encode()))


class World:
    def __init__(self, chance, count=3, tokens=4, sabotage=""):
        self.chance, self.count, self.sabotage = chance, count, sabotage
        self.roster = Roster(1, tuple(IDS[:count]))
        self.volumes = {one: Volume(self, one) for one in IDS[:count]}
        self.tokens = [f"t{number}" for number in range(tokens)]
        self.numbers = 0
        self.timers = []
        self.channels = {}  # (sender, receiver) -> messages of the present session
        self.session = {}  # (me, peer) -> number, as `me` believes
        self.alive = {}  # pair -> number of the session that works
        self.committed, self.moved, self.recorded, self.crashes = set(), 0, 0, 0
        for token in self.tokens:
            self.volumes[chance.choice(IDS[:count])].durable.shown[token] = self.number()
        for volume in self.volumes.values():
            volume.start()

    def number(self):
        self.numbers += 1
        return self.numbers

    # -- channels ---------------------------------------------------------------------------------

    def send(self, me, peer, session, message):
        if self.alive.get(frozenset((me, peer))) == session:
            self.channels[me, peer].append(message)

    def lose(self, one, other):
        self.alive.pop(frozenset((one, other)), None)
        self.channels[one, other] = deque()
        self.channels[other, one] = deque()
        for me, peer in ((one, other), (other, one)):
            if not self.volumes[me].up:
                self.session.pop((me, peer), None)

    def connect(self, one, other):
        number = self.number()
        self.alive[frozenset((one, other))] = number
        ends = [(one, other), (other, one)]
        self.chance.shuffle(ends)
        for me, peer in ends:
            self.channels[me, peer] = deque()
        for me, peer in ends:
            self.session[me, peer] = number
            self.volumes[me].give(e.SessionUp(peer, number))
            self.volumes[me].back(peer)

    # -- steps ------------------------------------------------------------------------------------

    def choices(self, calm):
        """Everything that may happen next; `calm`: nothing new, and nothing bad."""
        found = []
        for volume in self.volumes.values():
            me = volume.me
            if not volume.up:
                found.append(volume.start)
                continue
            if volume.works:
                found += [lambda v=volume: v.works.popleft()()] * 2
            found += [lambda v=volume, k=key: v.want(k) for key in volume.wants]
            for peer in self.volumes:
                number = self.session.get((me, peer))
                if number is not None and self.alive.get(frozenset((me, peer))) != number:
                    found.append(lambda v=volume, p=peer, n=number: self.down(v, p, n))
                elif number is not None and self.channels[me, peer] and self.volumes[peer].up:
                    if self.session.get((peer, me)) == number:
                        found += [lambda a=me, b=peer, n=number: self.hear(a, b, n)] * 2
                elif (
                    number is None
                    and me < peer
                    and self.volumes[peer].up
                    and self.session.get((peer, me)) is None
                ):
                    found.append(lambda a=me, b=peer: self.connect(a, b))
        return found if calm and found else found + self.others(calm)

    def others(self, calm):
        found = [self.timer] if self.timers else []
        if not calm:
            rare = [self.crash, self.breaks]
            often = [self.begin_move, self.begin_move, self.begin_snapshot, self.change]
            found += self.chance.choices(often, k=2)
            found += rare if self.chance.random() < 0.15 else []
        return found

    def down(self, volume, peer, number):
        del self.session[volume.me, peer]
        volume.give(e.SessionDown(peer, number, "lost"))

    def hear(self, sender, receiver, number):
        message = self.channels[sender, receiver].popleft()
        self.volumes[receiver].give(e.Received(sender, number, message))

    def timer(self):
        at = self.chance.randrange(len(self.timers))
        volume, process, event = self.timers.pop(at)
        if volume.up and volume.process is process:
            volume.give(event)

    def crash(self):
        self.crashes += 1
        volume = self.chance.choice([*self.volumes.values()])
        if volume.up:
            volume.crash()

    def breaks(self):
        one, other = self.chance.sample([*self.volumes], 2)
        self.lose(one, other)

    def change(self):
        volume = self.chance.choice([*self.volumes.values()])
        if volume.up and volume.now.shown:
            token = self.chance.choice(sorted(volume.now.shown))
            volume.now.shown[token] = self.number()

    def begin_move(self):
        volume = self.chance.choice([*self.volumes.values()])
        if not volume.up:
            return
        busy = {core.row.name.decode() for core in volume.cores.values()}
        free = sorted(set(volume.now.shown) - busy)
        if free:
            token = self.chance.choice(free).encode()
            peer = self.chance.choice([one for one in self.volumes if one != volume.me])
            move = self.number().to_bytes(16, "big")
            core = volume.cores["out", move] = m.Source(
                m.SourceRow("offered", peer, 0, token, 0, token, (), 1)
            )
            self.moved += 1
            volume.act("out", move, core.start())

    def begin_snapshot(self):
        volume = self.chance.choice([*self.volumes.values()])
        if volume.up:
            number = self.number()
            plan = Plan(
                number.to_bytes(16, "big"), f"s{number}", number, volume.me, 1,
                self.roster.fingerprint,
            )  # fmt: skip
            volume.give(e.Start(plan))

    # -- what must be true ------------------------------------------------------------------------

    def check_present(self):
        shown = [token for each in self.volumes.values() if each.up for token in each.now.shown]
        if len(shown) != len(set(shown)):
            raise Violation(f"in two places: {sorted(shown)}")

    def check(self, snapshot):
        parts = [volume.now.visible.get(snapshot) for volume in self.volumes.values()]
        if None in parts:
            return
        self.committed.add(snapshot)
        shown = sorted(token for part in parts for token in part)
        if shown != self.tokens:
            raise Violation(f"a snapshot holds {shown}, not {self.tokens}")
        self.recorded += any(volume.now.recorded.get(snapshot) for volume in self.volumes.values())

    def run(self, steps):
        for _ in range(steps):
            self.chance.choice(self.choices(calm=False))()
            self.check_present()
        for _ in range(20_000):
            choices = self.choices(calm=True)
            if not choices:
                break
            self.chance.choice(choices)()
            self.check_present()
        else:
            raise Violation("no end of it")
        self.check_end()

    def check_end(self):
        volumes = self.volumes.values()
        shown = sorted(token for volume in volumes for token in volume.now.shown)
        if shown != self.tokens:
            raise Violation(f"in the end there are {shown}")
        for volume in volumes:
            if volume.cores or volume.now.rows or volume.now.hidden or volume.now.staged:
                raise Violation(f"left in {volume.me}: {volume.cores}")
            if volume.now.visible.keys() != self.committed:
                raise Violation("a snapshot is visible in some volumes only")


__all__ = ["SABOTAGES", "Transfer", "Violation", "World"]
