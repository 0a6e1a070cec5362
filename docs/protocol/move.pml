/* A move of one file between two volumes, and a group snapshot of both, checked exhaustively by spin.
 *
 *   docs/protocol/check.sh          all variants; each says what it must find
 *
 * The states are those of the tables in raidfs/group/move.py, S the source and T the target. Around
 * them: FIFO channels; rows that become durable some time after they are kept (with all that was
 * done before); a snapshot begun by either, at any moment: cut, marker, what comes before the other's
 * marker is recorded, and delivered into the cut when the snapshot is committed; -DCRASH=n: so many
 * crashes, each of any side at any moment, which leave it what was durable, and end the session: what
 * is under way is lost, the snapshot too, and each side says again what it has to say.
 *
 * Asserted, always: the file is shown in one place at most. When nothing can happen any more: it is
 * shown in exactly one, nothing is hidden, nobody remembers the move, and a snapshot that was not
 * given up holds the file in exactly one place.
 *
 * Sabotage, each must fail: -DNOT_HIDDEN_AGAIN, -DGIVEN_EARLY, -DTAKEN_EARLY, -DNOT_RECORDED,
 * -DNOT_RECORDED_UNLINKED, -DNOT_DELIVERED, -DSAID_LATE (in a new session a marker comes before it).
 */

#ifndef CRASH
#define CRASH 0
#endif

mtype = { OFFERED, STAGED, GIVEN, TAKEN, SETTLED, WITHDRAWN, MARKER };
/* states of the source, and of the target */
mtype = { begin, offered, promising, giving, given, ending, ended,
	  none, staging, sealing, staged, owned, linked, taken };

chan to_t = [6] of { mtype };
chan to_s = [6] of { mtype };

/* what each has, and what of it is durable */
mtype s = begin, t = none;
bool s_row_kept, s_row_giving, d_s_row_kept, d_s_row_giving;
bool s_shown = true, s_hidden, d_s_shown = true, d_s_hidden;
mtype t_row = none, d_t_row = none; /* none, staging, staged, taken */
bool t_staged, t_shown, d_t_staged, d_t_shown;
bool canceled;
byte crashes;

/* the snapshot: each side's cut, whether the other's marker is awaited, what was recorded */
bool s_cut, t_cut, s_waits, t_waits, begun, abandoned;
bool cut_s_shown, cut_t_shown, cut_t_staged, recorded;
/* more of what each was at its cut; that this is durable; that something later is */
bool cut_s_row_kept, cut_s_row_giving, cut_s_hidden, s_prepared, s_later;
mtype cut_t_row = none;
bool t_prepared, t_later;

#define s_sync d_s_row_kept = s_row_kept; d_s_row_giving = s_row_giving; \
	       d_s_shown = s_shown; d_s_hidden = s_hidden; s_later = s_cut
#define t_sync d_t_row = t_row; d_t_staged = t_staged; d_t_shown = t_shown; t_later = t_cut
/* said in a session; where there is none, it is lost */
bool s_up = true, t_up = true, owes;
#define tell_t(what) if :: s_up -> to_t!what :: else fi
#define tell_s(what) if :: t_up -> to_s!what :: else fi
#define once assert(!(s_shown && t_shown))

inline cut_source()
{
	s_cut = true; s_waits = true; cut_s_shown = s_shown; cut_s_hidden = s_hidden;
	cut_s_row_kept = s_row_kept; cut_s_row_giving = s_row_giving; tell_t(MARKER)
}

inline cut_target()
{
	t_cut = true; t_waits = true; cut_t_shown = t_shown; cut_t_staged = t_staged;
	cut_t_row = t_row;
#ifndef NOT_RECORDED_UNLINKED
	recorded = recorded || t == owned;
#endif
	tell_s(MARKER)
}

/* the session is over: lost is what was under way; a snapshot that isn't complete is given up */
inline lose()
{
	do
	:: nempty(to_t) -> to_t?_
	:: nempty(to_s) -> to_s?_
	:: empty(to_t) && empty(to_s) -> break
	od;
	if
	:: begun && (!s_cut || !t_cut || s_waits || t_waits) -> abandoned = true
	:: else
	fi;
	s_waits = false; t_waits = false; s_up = false; t_up = false
}

active proctype Source()
{
	mtype heard;
end:	do
	/* first of all in a new session */
	:: atomic { !s_up -> s_up = true;
		if
		:: s == offered -> tell_t(OFFERED)
#ifdef SAID_LATE
		:: s == given -> owes = true
#else
		:: s == given -> tell_t(GIVEN)
#endif
		:: else
		fi
	}
#ifdef SAID_LATE
	:: atomic { owes && s == given -> owes = false; tell_t(GIVEN) }
#endif
	/* its row is durable */
	:: atomic { s == begin -> s_row_kept = true; s_row_giving = false; s_sync;
		s = offered; tell_t(OFFERED)
	}
	:: atomic { s == promising -> s_row_giving = true;
#ifndef GIVEN_EARLY
		s_sync;
#endif
		s = giving
	}
	:: atomic { s == giving ->
		s_shown = false; s_hidden = true; s = given; tell_t(GIVEN)
	}
	:: atomic { s == ending -> s_row_kept = false; s_row_giving = false; s_sync;
		s = ended; s_hidden = false; s_sync; tell_t((canceled -> WITHDRAWN : SETTLED))
	}
	:: atomic { !canceled && (s == offered || s == promising || s == giving) ->
		canceled = true; s = ending
	}
	/* anything else becomes durable at any time */
	:: atomic { (d_s_shown != s_shown || d_s_hidden != s_hidden) -> s_sync }
	/* the cut is, and nothing later must be */
	:: atomic { s_cut && !s_waits && !s_prepared && !abandoned -> s_prepared = true;
		if
		:: !s_later -> d_s_shown = cut_s_shown; d_s_hidden = cut_s_hidden;
			d_s_row_kept = cut_s_row_kept; d_s_row_giving = cut_s_row_giving
		:: else
		fi
	}
	:: atomic { !begun && s_up -> begun = true; cut_source() }
	:: atomic { s_up && nempty(to_s) -> to_s?heard;
		if
		:: heard == MARKER && !abandoned ->
			if
			:: !s_cut -> cut_source()
			:: else
			fi;
			s_waits = false
		:: heard == STAGED && s == offered -> s = promising
		:: heard == STAGED && s == given -> tell_t(GIVEN)
		:: heard == STAGED && s == ended -> tell_t(WITHDRAWN)
		:: heard == TAKEN && s == given -> s = ending
		:: heard == TAKEN && s == ended -> tell_t(SETTLED)
		:: else
		fi;
		heard = OFFERED
	}
	od
}

active proctype Target()
{
	mtype heard;
end:	do
	:: atomic { !t_up -> t_up = true;
		if
		:: t == staged -> tell_s(STAGED)
		:: t == taken -> tell_s(TAKEN)
		:: else
		fi
	}
	/* content is there, and durable */
	:: atomic { t == staging -> t_staged = true; t_row = staged; t_sync; t = staged; tell_s(STAGED) }
	:: atomic { t == owned -> t_staged = false; t_shown = true; t = linked; once }
#ifdef TAKEN_EARLY
	:: atomic { t == linked -> t_row = taken; t = taken; tell_s(TAKEN) }
#else
	:: atomic { t == linked -> t_row = taken; t_sync; t = taken; tell_s(TAKEN) }
#endif
	:: atomic { t == ending -> t_row = none; t_staged = false; t_sync; t = none }
	:: atomic { (d_t_shown != t_shown || d_t_staged != t_staged) -> d_t_shown = t_shown;
		d_t_staged = t_staged; t_later = t_cut }
	:: atomic { t_cut && !t_waits && !t_prepared && !abandoned -> t_prepared = true;
		if
		:: !t_later -> d_t_shown = cut_t_shown; d_t_staged = cut_t_staged; d_t_row = cut_t_row
		:: else
		fi
	}
	:: atomic { !begun && t_up -> begun = true; cut_target() }
	:: atomic { t_up && nempty(to_t) -> to_t?heard;
		if
		:: heard == MARKER && !abandoned ->
			if
			:: !t_cut -> cut_target()
			:: else
			fi;
			t_waits = false
		:: heard == GIVEN ->
#ifndef NOT_RECORDED
			recorded = recorded || t_waits;
#endif
			if
			:: t == staged -> t = owned
			:: t == taken -> tell_s(TAKEN)
			:: else
			fi
		:: heard == OFFERED && t == none -> t_row = staging; t_sync; t = staging
		:: heard == OFFERED && t == staged -> tell_s(STAGED)
		:: heard == SETTLED && t == taken -> t = ending
		:: heard == WITHDRAWN && (t == staging || t == staged) -> t = ending
		:: else
		fi;
		heard = OFFERED
	}
	od
}

active proctype Crash()
{
end:	do
	:: atomic { crashes < CRASH ->
		crashes++;
		if
		:: /* the source */
			abandoned = abandoned || (s_cut && !s_prepared);
			s_row_kept = d_s_row_kept; s_row_giving = d_s_row_giving;
			s_shown = d_s_shown; s_hidden = d_s_hidden;
			if
			:: !s_row_kept && s != ended && !canceled -> s = begin
			:: !s_row_kept && (s == ended || canceled) -> s = ended; s_hidden = false
			:: s_row_kept && s_row_giving ->
#ifndef NOT_HIDDEN_AGAIN
				s_shown = false;
#endif
				s_hidden = true; s = given; canceled = false
			:: s_row_kept && !s_row_giving -> s = offered; canceled = false
			fi
		:: /* the target */
			abandoned = abandoned || (t_cut && !t_prepared);
			t_row = d_t_row; t_staged = d_t_staged; t_shown = d_t_shown;
			if
			:: t_row == none -> t = none; t_staged = false
			:: t_row == staging -> t = staging
			:: t_row == staged && t_staged -> t = staged
			:: t_row == staged && !t_staged -> t = linked
			:: t_row == taken -> t = taken
			fi
		fi;
		once;
		lose()
	}
	od
}

active proctype Judge()
{
	byte places;
	timeout -> atomic {
		assert(s_shown + t_shown == 1);
		assert(!s_hidden && !t_staged);
		assert(s == ended && t == none);
		if
		:: begun && !abandoned ->
			places = cut_s_shown + cut_t_shown;
#ifndef NOT_DELIVERED
			places = places + (recorded && cut_t_staged);
#endif
			assert(places == 1)
		:: else
		fi
	}
}
