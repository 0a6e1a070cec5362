"""The door between users' requests and the volume."""

import pytest
import trio
from simulated_volume import in_simulated_time

from raidfs.fs.door import Door, KeptOut
from raidfs.lane import Gate


def test_it_closes_behind_those_inside_and_keeps_others_out():
    async def test():
        gate = Gate()
        door, told = Door(gate), []

        async def request(name, seconds):
            async with door.passing():
                told.append(f"{name} in")
                await trio.sleep(seconds)
                told.append(f"{name} out")

        async def exchange():
            async with door.closed():
                assert gate.is_shut and not door.is_open
                told.append("exchange")
                await trio.sleep(5)
                told.append("exchanged")
            assert not gate.is_shut

        async with trio.open_nursery() as nursery:
            nursery.start_soon(request, "first", 3)
            await trio.sleep(1)
            nursery.start_soon(exchange)
            await trio.sleep(1)
            assert not gate.is_shut  # the first may have to be answered
            nursery.start_soon(request, "second", 0)
        expected = ["first in", "first out", "exchange", "exchanged", "second in", "second out"]
        assert told == expected and door.is_open

    in_simulated_time(test)


def test_who_waits_for_the_kernel_keeps_it_open():
    async def test():
        door, told = Door(Gate()), []

        async def waits():
            async with door.passing():
                with door.ajar():
                    await answered.wait()
                told.append("answered")

        async def exchange():
            async with door.closed():
                told.append("exchange")
                with door.ajar():  # by who is not inside
                    assert not door.is_open

        async def other():
            await trio.sleep(1)
            async with door.passing():
                answered.set()

        answered = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits)
            await trio.sleep(0.5)
            nursery.start_soon(exchange)
            nursery.start_soon(other)
        assert told == ["answered", "exchange"]

    in_simulated_time(test)


def test_whatever_ends_it_opens_the_gate():
    async def test():
        gate = Gate()
        door = Door(gate)
        with pytest.raises(ZeroDivisionError):
            async with door.closed():
                raise ZeroDivisionError
        assert not gate.is_shut and door.is_open
        with trio.move_on_after(1):
            async with door.closed():
                await trio.sleep_forever()
        assert not gate.is_shut and door.is_open
        async with door.closed():
            door.give_way()  # the mount is taken away
            assert not gate.is_shut and not door.is_open
        assert not gate.is_shut and door.is_open
        with gate.shut_for(), gate.shut_for():  # a cut while it is closed
            assert gate.is_shut
        assert not gate.is_shut

    in_simulated_time(test)


def test_one_after_the_other():
    async def test():
        door, inside = Door(Gate()), 0

        async def exchange():
            nonlocal inside
            async with door.closed():
                inside += 1
                await trio.sleep(1)
                assert inside == 1
                inside -= 1

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(exchange)
        assert trio.current_time() >= 3

    in_simulated_time(test)


def test_who_waits_is_refused_and_may_wait_again():
    async def test():
        gate = Gate()
        door, told = Door(gate), []

        async def request(name, **how):
            try:
                async with door.passing(**how):
                    told.append(f"{name} in")
            except KeptOut as error:
                told.append(f"{name}: {error}")

        async def close():
            try:
                async with door.closed():
                    told.append("closed by another")
            except KeptOut:
                told.append("not closed by another")

        async with trio.open_nursery() as nursery:
            async with door.closed():
                nursery.start_soon(request, "first")
                nursery.start_soon(close)
                await trio.sleep(1)
                assert told == [] and gate.is_shut
                door.refuse("no")
                await trio.sleep(1)
                assert set(told) == {"first: no", "not closed by another"}
                assert not gate.is_shut and not door.is_open
                await request("giving back", refusable=False)
                assert told.pop() == "giving back in"
                await door.wait_again()
                assert gate.is_shut and not door.refusal
                nursery.start_soon(request, "second")
                await trio.sleep(1)
                assert "second in" not in told
            await trio.sleep(1)
        assert told[-1] == "second in" and door.is_open and not gate.is_shut

    in_simulated_time(test)


def test_barred_until_somebody_closes_it_and_lets_in():
    async def test():
        door, told = Door(Gate()), []

        async def request():
            async with door.passing():
                told.append("in")

        door.bar()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request)
            await trio.sleep(1)
            assert not told
            async with door.closed():
                await trio.sleep(1)
                assert not told
            await trio.sleep(1)
            assert told == ["in"]

    in_simulated_time(test)
