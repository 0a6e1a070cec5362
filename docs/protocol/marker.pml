/* Group snapshots: markers, gate and two phases, for N volumes, checked exhaustively by spin.
 *
 *   docs/protocol/check.sh          all variants below; each says what it must find
 *
 * The rules are those of raidfs/group/marker.py, the phases have its names. Around them: FIFO
 * channels; an application that asks any volume, waits for the reply, asks any volume again; files
 * that move (MSG); one crash of any volume at any moment, which ends its sessions (what is under
 * way either still arrives or is lost) and leaves it what was durable; gates that time out at any
 * moment.
 *
 * What is asserted when nothing can happen any more:
 *   cut      in a committed snapshot the application's requests are a prefix of what it did, and
 *            each message sent before its sender's cut was received before its receiver's, or
 *            recorded, or lost with a session that the receiver knew to be over when it cut;
 *            none is received before its receiver's cut that was sent after its sender's
 *   whole    visible in all volumes or in none; in all if nothing failed
 *   no hang  the application is through, all gates are open, nobody is in doubt
 *
 * -DSNAPSHOTS=n: the first n volumes each start one. -DCRASH: one crash. -DTIMEOUTS: gates may time
 * out. Sabotage, each must fail: -DNO_GATE, -DLOSE_MARKER, -DNO_RECORD, -DPREPARED_FORGOTTEN,
 * -DDECISION_FORGOTTEN.
 */

#ifndef N
#define N 3
#endif
#ifndef SNAPSHOTS
#define SNAPSHOTS 1
#endif
#ifndef OPS
#define OPS 3
#endif
#ifndef MSGS
#define MSGS 2
#endif
#define ALL ((1 << N) - 1)
#define AT(s, p) ((s) * N + (p))
#define CH(p, q) ((p) * N + (q))
#define MINE(s, p) ((s) == (p))
#define SOURCE(m) ((m + 1) % N)
#define TARGET(m) ((m + 2) % N)

#if defined(CRASH) || defined(TIMEOUTS)
#define FAULTS
#endif

/* phases */
#define UNKNOWN 0
#define RECORDING 1
#define SETTLING 2
#define PREPARED 3
#define COLLECTING 4
#define DECIDING 5
#define COMMITTING 6
#define DISTRIBUTING 7
#define COMMITTED 8
#define ABORTED 9

mtype:said = { MARKER, MSG, VOTE, REFUSED, COMMIT, ABORT, DONE, QUERY, DOWN };

chan channel[N * N] = [8] of { mtype:said, byte };
bool stale[N * N]; /* p has not yet heard that its session with q is over */

byte phase[SNAPSHOTS * N];
byte waiting[SNAPSHOTS * N];
byte votes[SNAPSHOTS];
byte done[SNAPSHOTS];
bool started[SNAPSHOTS];
bool failed; /* something failed: snapshots may abort */

/* durable */
bool prepared_kept[SNAPSHOTS * N];
bool decision_kept[SNAPSHOTS];
bool visible[SNAPSHOTS * N];

/* the application, and the messages: bit j is request j, bit m is message m */
byte asked[N];
bool app_done;
byte sent, got, lost, excused, dropped;

/* what each volume's cut holds */
byte cut_asked[SNAPSHOTS * N];
byte cut_sent[SNAPSHOTS * N];
byte cut_got[SNAPSHOTS * N];
byte cut_excused[SNAPSHOTS * N];
byte recorded[SNAPSHOTS * N];
bool cut_restarted[SNAPSHOTS * N];
bool restarted[N];
#ifdef LOSE_MARKER
bool spoiled;
#endif

inline send(src, dst, kind, value)
{
	if
	:: stale[CH(src, dst)] ->
		if
		:: kind == MSG -> lost = lost | (1 << value); dropped = dropped | (1 << value)
		:: else
		fi
	:: else ->
		assert(nfull(channel[CH(src, dst)]));
		channel[CH(src, dst)]!kind(value)
	fi
}

inline tell(teller, news, about)
{
	for (to : 0 .. N - 1) {
		if
		:: to != teller -> send(teller, to, news, about)
		:: else
		fi
	}
	to = 0
}

/* the cut and the markers: one step */
inline cut(p, s, first)
{
	phase[AT(s, p)] = RECORDING;
	waiting[AT(s, p)] = ALL & ~(1 << p) & ~(first);
	cut_asked[AT(s, p)] = asked[p];
	cut_restarted[AT(s, p)] = restarted[p];
	cut_sent[AT(s, p)] = 0;
	cut_got[AT(s, p)] = 0;
	cut_excused[AT(s, p)] = 0;
	recorded[AT(s, p)] = 0;
	for (m : 0 .. MSGS - 1) {
		if
		:: SOURCE(m) == p -> cut_sent[AT(s, p)] = cut_sent[AT(s, p)] | (sent & (1 << m))
		:: TARGET(m) == p ->
			cut_got[AT(s, p)] = cut_got[AT(s, p)] | (got & (1 << m));
			cut_excused[AT(s, p)] = cut_excused[AT(s, p)] | (excused & (1 << m))
		:: else
		fi
	}
	m = 0;
	for (to : 0 .. N - 1) {
		if
#ifdef LOSE_MARKER
		:: to != p && !spoiled -> spoiled = true
#endif
		:: to != p -> send(p, to, MARKER, s)
		:: to == p
		fi
	}
	to = 0;
	settle_if_all_in(p, s)
}

inline settle_if_all_in(p, s)
{
	if
	:: waiting[AT(s, p)] == 0 -> phase[AT(s, p)] = SETTLING
	:: else
	fi
}

inline over(p, s)
{
	phase[AT(s, p)] = ABORTED;
	waiting[AT(s, p)] = 0;
	prepared_kept[AT(s, p)] = false
}

/* aborted for a reason of one's own */
inline quit(p, s)
{
	over(p, s);
	if
	:: MINE(s, p) -> tell(p, ABORT, s)
	:: else -> tell(p, REFUSED, s)
	fi
}

inline decide_if_all_prepared(p, s)
{
	if
	:: phase[AT(s, p)] == COLLECTING && votes[s] == ALL -> phase[AT(s, p)] = DECIDING
	:: else
	fi
}

inline forget_if_all_done(p, s)
{
	if
	:: phase[AT(s, p)] == DISTRIBUTING && done[s] == ALL ->
		phase[AT(s, p)] = COMMITTED;
		decision_kept[s] = false
	:: else
	fi
}

inline take_marker(p, q, s)
{
	if
	:: phase[AT(s, p)] == UNKNOWN && MINE(s, p) -> /* restarted since: presumed abort */
		over(p, s); tell(p, REFUSED, s)
	:: phase[AT(s, p)] == UNKNOWN && !MINE(s, p) -> cut(p, s, 1 << q)
	:: phase[AT(s, p)] == RECORDING ->
		assert(waiting[AT(s, p)] & (1 << q));
		waiting[AT(s, p)] = waiting[AT(s, p)] & ~(1 << q);
		settle_if_all_in(p, s)
	:: phase[AT(s, p)] == ABORTED -> send(p, q, REFUSED, s)
	:: else -> assert(false)
	fi
}

inline take_message(p, q, what)
{
	for (k : 0 .. SNAPSHOTS - 1) {
		if
		:: phase[AT(k, p)] == RECORDING && (waiting[AT(k, p)] & (1 << q)) ->
#ifndef NO_RECORD
			recorded[AT(k, p)] = recorded[AT(k, p)] | (1 << what)
#endif
			skip
		:: else
		fi
	}
	k = 0;
	got = got | (1 << what)
}

inline take_refused(p, s)
{
	if
	:: phase[AT(s, p)] == ABORTED
	:: phase[AT(s, p)] == UNKNOWN -> phase[AT(s, p)] = ABORTED
	:: phase[AT(s, p)] == RECORDING || phase[AT(s, p)] == SETTLING ||
	   phase[AT(s, p)] == COLLECTING || phase[AT(s, p)] == PREPARED ->
		if
		:: MINE(s, p) -> quit(p, s)
		:: else -> over(p, s)
		fi
	:: else -> assert(false)
	fi
}

inline take_abort(p, s)
{
	if
	:: phase[AT(s, p)] == ABORTED
	:: phase[AT(s, p)] == UNKNOWN -> phase[AT(s, p)] = ABORTED
	:: phase[AT(s, p)] == RECORDING || phase[AT(s, p)] == SETTLING ||
	   phase[AT(s, p)] == PREPARED -> over(p, s)
	:: else -> assert(false)
	fi
}

inline take_vote(p, q, s)
{
	if
	:: phase[AT(s, p)] == RECORDING || phase[AT(s, p)] == SETTLING ||
	   phase[AT(s, p)] == COLLECTING ->
		votes[s] = votes[s] | (1 << q);
		decide_if_all_prepared(p, s)
	:: phase[AT(s, p)] == ABORTED || phase[AT(s, p)] == UNKNOWN -> send(p, q, ABORT, s)
	:: else -> assert(false)
	fi
}

inline take_commit(p, q, s)
{
	if
	:: phase[AT(s, p)] == PREPARED -> phase[AT(s, p)] = COMMITTING
	:: phase[AT(s, p)] == COMMITTING
	:: phase[AT(s, p)] == COMMITTED || phase[AT(s, p)] == UNKNOWN -> send(p, q, DONE, s)
	:: else -> assert(false)
	fi
}

inline take_done(p, q, s)
{
	if
	:: phase[AT(s, p)] == COMMITTING || phase[AT(s, p)] == DISTRIBUTING ->
		done[s] = done[s] | (1 << q);
		forget_if_all_done(p, s)
	:: phase[AT(s, p)] == COMMITTED || phase[AT(s, p)] == UNKNOWN
	:: else -> assert(false)
	fi
}

inline take_query(p, q, s)
{
	if
	:: phase[AT(s, p)] == COMMITTING || phase[AT(s, p)] == DISTRIBUTING ||
	   phase[AT(s, p)] == COMMITTED -> send(p, q, COMMIT, s)
	:: phase[AT(s, p)] == UNKNOWN || phase[AT(s, p)] == ABORTED ->
		phase[AT(s, p)] = ABORTED;
		send(p, q, ABORT, s)
	:: else
	fi
}

/* the session with q is over, and another one is there */
inline take_down(p, q)
{
	stale[CH(p, q)] = false;
	for (m : 0 .. MSGS - 1) {
		if
		:: SOURCE(m) == q && TARGET(m) == p -> excused = excused | (lost & (1 << m))
		:: else
		fi
	}
	m = 0;
	for (k : 0 .. SNAPSHOTS - 1) {
		if
		:: phase[AT(k, p)] == RECORDING -> quit(p, k)
		:: phase[AT(k, p)] == SETTLING && (MINE(k, p) || MINE(k, q)) -> quit(p, k)
		:: phase[AT(k, p)] == COLLECTING -> quit(p, k)
		:: phase[AT(k, p)] == PREPARED && MINE(k, q) -> send(p, q, QUERY, k)
		:: MINE(k, p) && !(done[k] & (1 << q)) &&
		   (phase[AT(k, p)] == COMMITTING || phase[AT(k, p)] == DISTRIBUTING) ->
			send(p, q, COMMIT, k)
		:: else
		fi
	}
	k = 0
}

inline disk(p, s)
{
	if
	:: phase[AT(s, p)] == SETTLING ->
#ifdef PREPARED_FORGOTTEN
		prepared_kept[AT(s, p)] = MINE(s, p);
#else
		prepared_kept[AT(s, p)] = true;
#endif
		if
		:: MINE(s, p) ->
			votes[s] = votes[s] | (1 << p);
			phase[AT(s, p)] = COLLECTING;
			decide_if_all_prepared(p, s)
		:: else -> phase[AT(s, p)] = PREPARED; send(p, s, VOTE, s)
		fi
	:: phase[AT(s, p)] == DECIDING ->
#ifndef DECISION_FORGOTTEN
		decision_kept[s] = true;
#endif
		phase[AT(s, p)] = COMMITTING;
		tell(p, COMMIT, s)
	:: phase[AT(s, p)] == COMMITTING ->
		prepared_kept[AT(s, p)] = false;
		visible[AT(s, p)] = true;
		if
		:: MINE(s, p) ->
			done[s] = done[s] | (1 << p);
			phase[AT(s, p)] = DISTRIBUTING;
			forget_if_all_done(p, s)
		:: else -> phase[AT(s, p)] = COMMITTED; send(p, s, DONE, s)
		fi
	fi
}

#define DISK(s, p) (phase[AT(s, p)] == SETTLING || phase[AT(s, p)] == DECIDING || \
		    phase[AT(s, p)] == COMMITTING)

#if N > 2
#define HEARD(step) nempty(channel[CH((me + step) % N, me)])
#else
#define HEARD(step) (step == 1 && nempty(channel[CH((me + step) % N, me)]))
#endif

active [N] proctype Volume()
{
	byte me = _pid;
	byte from, own, to, m, k, value_in;
	mtype:said heard = DOWN;
end:	do
	:: atomic { me < SNAPSHOTS && !started[me] ->
		started[me] = true;
		/* after a restart a snapshot of one's own is not the same one */
		if
		:: phase[AT(me, me)] == UNKNOWN -> own = me; cut(me, own, 0); own = 0
		:: else
		fi
	}
	:: atomic { SNAPSHOTS > 0 && DISK(0, me) -> disk(me, 0) }
#if SNAPSHOTS > 1
	:: atomic { DISK(1, me) -> disk(me, 1) }
#endif
#ifdef TIMEOUTS
	:: atomic { phase[AT(0, me)] == RECORDING -> failed = true; quit(me, 0) }
#if SNAPSHOTS > 1
	:: atomic { phase[AT(1, me)] == RECORDING -> failed = true; quit(me, 1) }
#endif
#endif
	:: atomic { me == SOURCE(0) && MSGS > 0 && !(sent & 1) ->
		sent = sent | 1; send(me, TARGET(0), MSG, 0)
	}
	:: atomic { me == SOURCE(1) && MSGS > 1 && !(sent & 2) ->
		sent = sent | 2; send(me, TARGET(1), MSG, 1)
	}
	:: atomic { HEARD(1) || HEARD(2) ->
		if
		:: HEARD(1) -> from = (me + 1) % N
		:: HEARD(2) -> from = (me + 2) % N
		fi;
		channel[CH(from, me)]?heard(value_in);
		if
		:: heard == MARKER -> take_marker(me, from, value_in)
		:: heard == MSG -> take_message(me, from, value_in)
		:: heard == REFUSED -> take_refused(me, value_in)
		:: heard == ABORT -> take_abort(me, value_in)
		:: heard == VOTE -> take_vote(me, from, value_in)
		:: heard == COMMIT -> take_commit(me, from, value_in)
		:: heard == DONE -> take_done(me, from, value_in)
		:: heard == QUERY -> take_query(me, from, value_in)
		:: heard == DOWN -> take_down(me, from)
		fi;
		from = 0; value_in = 0; heard = DOWN
	}
	od
}

#ifdef NO_GATE
#define GATE_OPEN(v) true
#elif SNAPSHOTS > 1
#define GATE_OPEN(v) (phase[AT(0, v)] != RECORDING && phase[AT(1, v)] != RECORDING)
#else
#define GATE_OPEN(v) (phase[AT(0, v)] != RECORDING)
#endif

active proctype Application()
{
	byte op, v;
	do
	:: op == OPS -> break
	:: op < OPS ->
		atomic {
			select(v : 0 .. N - 1);
			asked[v] = asked[v] | (1 << op);
		}
		atomic { GATE_OPEN(v) -> op++; v = 0 }
	od;
	app_done = true
}

#ifdef CRASH
inline drain(a, b)
{
	do
	:: channel[CH(a, b)]?MSG(arg) -> lost = lost | (1 << arg)
	:: nempty(channel[CH(a, b)]) && !(channel[CH(a, b)]?[MSG(_)]) -> channel[CH(a, b)]?what(arg)
	:: empty(channel[CH(a, b)]) -> break
	od;
	arg = 0; what = DOWN
}

inline recover(p, s)
{
	if
	:: MINE(s, p) && decision_kept[s] && visible[AT(s, p)] ->
		phase[AT(s, p)] = DISTRIBUTING; done[s] = 1 << p; tell(p, COMMIT, s);
		forget_if_all_done(p, s)
	:: MINE(s, p) && decision_kept[s] && !visible[AT(s, p)] ->
		phase[AT(s, p)] = COMMITTING; done[s] = 0; tell(p, COMMIT, s)
	:: !(MINE(s, p) && decision_kept[s]) && visible[AT(s, p)] -> phase[AT(s, p)] = COMMITTED
	:: !decision_kept[s] && MINE(s, p) && prepared_kept[AT(s, p)] -> over(p, s)
	:: !MINE(s, p) && prepared_kept[AT(s, p)] ->
		phase[AT(s, p)] = PREPARED; send(p, s, QUERY, s)
	:: else -> phase[AT(s, p)] = UNKNOWN
	fi
}

active proctype Crash()
{
	byte me, from, snap, to, m, arg;
	bool keep;
	mtype:said what;
	atomic {
		select(me : 0 .. N - 1);
		select(keep : 0 .. 1)
	}
	/* at any moment; volumes hold no state between their steps */
	atomic {
		failed = true;
		restarted[me] = true;
		for (from : 0 .. N - 1) {
			if
			:: from != me ->
				if
				:: !keep -> drain(me, from)
				:: else
				fi;
				drain(from, me);
				channel[CH(me, from)]!DOWN(0);
				stale[CH(from, me)] = true
			:: else
			fi
		}
		for (m : 0 .. MSGS - 1) {
			if
			:: TARGET(m) == me -> excused = excused | (lost & (1 << m))
			:: else
			fi
		}
		for (snap : 0 .. SNAPSHOTS - 1) {
			waiting[AT(snap, me)] = 0;
			if
			:: MINE(snap, me) -> votes[snap] = 0
			:: else
			fi;
			recover(me, snap)
		}
		me = 0; from = 0; snap = 0; to = 0; m = 0; keep = 0
	}
}
#endif

inline check_messages(snap)
{
	for (m : 0 .. MSGS - 1) {
		b = 1 << m;
		p = SOURCE(m);
		q = TARGET(m);
		in = (cut_got[AT(snap, q)] | recorded[AT(snap, q)]) & b;
		assert(!(cut_got[AT(snap, q)] & recorded[AT(snap, q)] & b));
		assert(!in || (cut_sent[AT(snap, p)] & b));
		assert(in || !(cut_sent[AT(snap, p)] & b) || (cut_excused[AT(snap, q)] & b) ||
		       ((dropped & b) && cut_restarted[AT(snap, q)]))
	}
}

active proctype Judge()
{
	byte s, p, q, m, b, in, shown, prefix;
	timeout -> atomic {
		assert(app_done);
		for (s : 0 .. SNAPSHOTS - 1) {
			shown = 0;
			prefix = 0;
			for (p : 0 .. N - 1) {
				assert(phase[AT(s, p)] == UNKNOWN || phase[AT(s, p)] == ABORTED ||
				       phase[AT(s, p)] == COMMITTED);
				assert(!prepared_kept[AT(s, p)]);
				shown = shown + visible[AT(s, p)];
				prefix = prefix | cut_asked[AT(s, p)]
			}
			assert(!decision_kept[s]);
			assert(shown == 0 || shown == N);
			assert(failed || shown == N);
			if
			:: shown == N ->
				assert((prefix & (prefix + 1)) == 0);
				check_messages(s)
			:: else
			fi
		}
	}
}
