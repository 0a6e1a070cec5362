"""Snapshots over several volumes: the marker protocol of Chandy and Lamport among mount daemons.

Stands on floor 1 only. messages.py: what is said and what is kept; events.py: what comes in and
goes out of the state machine; progress.py: its states; marker.py: its tables, rules.py and
recovery.py what they name; stable.py: what a recorded global state tells for ever after.
"""
