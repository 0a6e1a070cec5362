"""Snapshots over several volumes: the marker protocol of Chandy and Lamport among mount daemons.

Stands on floor 1 only. messages.py: what is said and what is kept; events.py: what comes in and
goes out of the state machine; progress.py: its states; marker.py: its tables, rules.py and
recovery.py what they name; stable.py: what a recorded global state tells for ever after.

What is done without a cut: charter.py: who is in a group, and what else members say to each other;
work.py: what all do together or none does, work_events.py what comes in and goes out of that,
work_sides.py its tables; move.py: files that move between two volumes, both sides as tables.

How members reach each other: wire.py: frames, and which are believed; transport.py: streams, and
who is at the other end; session.py: one connection; link.py: who connects to whom, and who is let
in. authority.py: who belongs to a group, its certificates and invitations; keys.py: keys and
certificates as files; join.py: what is said to be given one.
"""
