-- The metadata database of a volume: the reference for every table and column.
--
-- The file is read by Meta.create, which runs it as it stands. It lies on all members (mirror.py), in
-- pages of 4096 bytes of which SQLite leaves the last 8 to the mirror's page checksum.
--
-- EPOCHS AND VERSIONS. An epoch is the number of cuts so far, from 1. A row of a versioned table says
-- what holds from epoch `born` on and up to, not including, epoch `died`: it is visible at e iff
-- born <= e < died. INF = 9223372036854775807 (2^63-1) as `died` means: still so (the row is *live*).
--   V1. Versions of one key never overlap, so a key has at most one live row, and that has the
--       highest `born`.
--   V2. What is created and gone within one epoch leaves no row.
--   V3. A dead row is kept while died > state.durable (a crash may bring it back) or some retained
--       epoch e (of a snapshot with a name) has born <= e < died; the first commit after that drops it.
--       What a condemned snapshot leaves behind, the sweeper drops by and by.
--   V4. Rows of dirent and xattr change only after the inode row they belong to (the parent; the
--       owner) was given a version of the same epoch. So after a crash, the inodes with a version that
--       died later than state.durable, and those numbered from state.next_ino on, name every row that
--       has to be undone.
--   V5. zone, column, checksum, owner, share, snapshot, hold, kept, recorded, setting, event and member rows change
--       only in the transaction that makes their epoch durable, and need no undo. leaf rows do, too,
--       but for a wholesale change (a rollback, a stream received), which takes several transactions;
--       it kills and inserts versions only, and its undo is that of V4.
--   V6. A version that no retained epoch sees may be overwritten by the transaction that makes an epoch
--       durable: in leaf by what the epoch made of it, in inode by what the epoch changed of the row
--       alone. `born` then stays what it was, lower than the epoch of the change.
--   V7. When a group snapshot is committed, what was on its way at its cut gets its name in the snapshot's
--       epoch e: the versions that are visible at e and would change are split, so that one is [e, e+1).
-- The partial indexes on `died` find dead rows without touching live ones.

-- One row.
--   format      version of all that is described here, 4; any other is refused. 1 had no shares and no snapshots,
--               2 nothing of groups, 3 events without details, and no columns that missed rows
--   durable     every change of an epoch up to this one is in the database, and in the rows that its
--               leaves refer to. Changes of later epochs may be there too; opening undoes them
--   next_ino    lowest inode number that no epoch up to `durable` handed out. Never handed out twice,
--               except for numbers of epochs that a crash took back
--   next_zone   lowest zone number never handed out
--   inodes      live inodes as of `durable`; stored since counting them would take a scan
--   cells       entries of live leaves that name a cell, as of `durable`
--   hash_key    16 random bytes, key of the hash that gives directory entries their position
--   created_ns  when the volume was made
--   cell_bytes  as in the labels: a check that database and labels belong together
CREATE TABLE state (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    format     INTEGER NOT NULL,
    durable    INTEGER NOT NULL,
    next_ino   INTEGER NOT NULL,
    next_zone  INTEGER NOT NULL,
    inodes     INTEGER NOT NULL,
    cells      INTEGER NOT NULL,
    hash_key   BLOB NOT NULL,
    created_ns INTEGER NOT NULL,
    cell_bytes INTEGER NOT NULL
);

-- Versioned. Files, directories, symbolic links and special files. Inode 1 is the root directory.
--   generation  distinguishes users of one number for NFS; given by the file system
--   mode        type and permissions, as in stat
--   rdev        device number of special files, else 0
--   size        bytes; of a symbolic link the length of its target; of a directory 0
--   nlink       names (directories: 2 + subdirectories). 0: an orphan, still open somewhere when it
--               lost its last name; removed at the next opening if a crash comes first
--   parent      directory that holds it; the root is its own. Of what may have several names: a
--               directory that holds one of them, or 0, not known
--   *_ns        nanoseconds since 1970
--   target      of a symbolic link, bytes as given; else NULL
--   xattrs      number of its live rows in xattr: 0 spares the look
--   cells       cells that its leaves hold, for st_blocks. Like leaves it changes only with the commit
--               that makes its epoch durable, in all versions that are alive then
CREATE TABLE inode (
    ino        INTEGER NOT NULL,
    born       INTEGER NOT NULL,
    died       INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    mode       INTEGER NOT NULL,
    uid        INTEGER NOT NULL,
    gid        INTEGER NOT NULL,
    rdev       INTEGER NOT NULL,
    size       INTEGER NOT NULL,
    nlink      INTEGER NOT NULL,
    parent     INTEGER NOT NULL,
    atime_ns   INTEGER NOT NULL,
    mtime_ns   INTEGER NOT NULL,
    ctime_ns   INTEGER NOT NULL,
    btime_ns   INTEGER NOT NULL,
    target     BLOB,
    xattrs     INTEGER NOT NULL,
    cells      INTEGER NOT NULL,
    PRIMARY KEY (ino, born)
) WITHOUT ROWID;
CREATE INDEX inode_died ON inode (died) WHERE died < 9223372036854775807;
CREATE INDEX inode_orphan ON inode (ino) WHERE nlink = 0 AND died = 9223372036854775807;

-- Versioned. Names.
--   parent      inode of the directory
--   position    62-bit keyed hash of the name, or the first free one of the 7 after it. Reading a
--               directory goes by position, so a reader's place stays right whatever is added or removed.
--               Unique among the live entries of a directory
--   name        1 to 255 bytes, any but "/" and NUL; never "." or ".."
--   ino         inode with a live version
--   kind        the type bits of its mode, shifted down by 12
CREATE TABLE dirent (
    parent   INTEGER NOT NULL,
    position INTEGER NOT NULL,
    born     INTEGER NOT NULL,
    died     INTEGER NOT NULL,
    name     BLOB NOT NULL,
    ino      INTEGER NOT NULL,
    kind     INTEGER NOT NULL,
    PRIMARY KEY (parent, position, born)
) WITHOUT ROWID;
CREATE INDEX dirent_died ON dirent (died) WHERE died < 9223372036854775807;

-- Versioned. Extended attributes, ACLs among them. `name` with its namespace ("user.x").
CREATE TABLE xattr (
    ino   INTEGER NOT NULL,
    name  BLOB NOT NULL,
    born  INTEGER NOT NULL,
    died  INTEGER NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (ino, name, born)
) WITHOUT ROWID;
CREATE INDEX xattr_died ON xattr (died) WHERE died < 9223372036854775807;

-- Versioned. Where the pages of a file lie: leaf `number` is for pages 256 * number and the 255 after.
-- A leaf without cells and inline content has no row.
--   cells       the addresses (zone << 32 | row << 8 | column; 0: a hole), trailing holes left off; NULL
--               if all are. One byte says how they are written, all numbers little-endian:
--                 0   one 64-bit word per page
--                 1   runs: the number of runs (16 bits), then the pages of each run minus one (8 bits
--                     each), then the first address of each (64 bits). Within a run each page lies one
--                     row (256) higher than the page before; a run of holes starts at 0 and stays there
--   inline      leaf 0 only: the content of page 0, up to 2048 bytes, the rest of the page being zeros.
--               Then cell 0 is a hole. NULL: page 0 is where `cells` says
CREATE TABLE leaf (
    ino    INTEGER NOT NULL,
    number INTEGER NOT NULL,
    born   INTEGER NOT NULL,
    died   INTEGER NOT NULL,
    cells  BLOB,
    inline BLOB,
    PRIMARY KEY (ino, number, born)
) WITHOUT ROWID;
CREATE INDEX leaf_died ON leaf (died) WHERE died < 9223372036854775807;

-- Zones that hold cells, or that are ready to take some.
--   code        "5/5", "rs:4+2/6": level and width
--   rows        height; fixed when the zone is made
--   fill        rows from here on were never written
--   live        entries of leaves, live or dead, that refer to its data cells. A cell may have several
--               of them (versions of a leaf; copy_file_range shares cells), and each counts
CREATE TABLE zone (
    zone INTEGER PRIMARY KEY,
    code TEXT NOT NULL,
    rows INTEGER NOT NULL,
    fill INTEGER NOT NULL,
    live INTEGER NOT NULL
);

-- Where each column of a zone lies: member id and the slot there. Columns 0 to width - 1, all of them.
--   missed      rows from here on were written while the member was lost, so it doesn't have them, whatever
--               lies there; NULL: it has all rows below fill that were written to it
CREATE TABLE "column" (
    zone     INTEGER NOT NULL,
    "column" INTEGER NOT NULL,
    member   INTEGER NOT NULL,
    slot     INTEGER NOT NULL,
    missed   INTEGER,
    PRIMARY KEY (zone, "column")
) WITHOUT ROWID;

-- CRC-32C of every cell, parity too, of rows below `fill`: slab s is for rows 256 * s and the 255 after.
--   crcs        little-endian 32-bit words, row by row, `width` to a row; of all rows of the slab, those
--               from `fill` on being zeros. Absent cells have the CRC of a cell of zeros
CREATE TABLE checksum (
    zone INTEGER NOT NULL,
    slab INTEGER NOT NULL,
    crcs BLOB NOT NULL,
    PRIMARY KEY (zone, slab)
) WITHOUT ROWID;

-- One row per burst: whose pages it holds, and by their number which of its cells are absent.
--   row, rows   its place in the zone
--   pages       pages in it; page i lies where the code's layout puts the i-th of so many
--   runs        (inode, first page, count) in the order of the pages; encoded by the burst's maker
CREATE TABLE owner (
    zone  INTEGER NOT NULL,
    "row" INTEGER NOT NULL,
    rows  INTEGER NOT NULL,
    pages INTEGER NOT NULL,
    runs  BLOB NOT NULL,
    PRIMARY KEY (zone, "row")
) WITHOUT ROWID;

-- Who else refers to cells of a zone. A leaf's entry for page p of inode i names a cell that the owner
-- record gives to page p of inode i, or there is a row here: leaf `number` of inode `ino` shares a cell of
-- the zone that was written for another page. So owner and share together name every leaf that whoever
-- empties a zone must look at. A row stays for as long as any version of its leaf refers to any cell of
-- the zone.
CREATE TABLE share (
    zone   INTEGER NOT NULL,
    ino    INTEGER NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (zone, ino, number)
) WITHOUT ROWID;

-- Snapshots: names for epochs. A row is inserted by the commit that makes its epoch durable.
--   id          never used twice; part of the inode numbers that programs see (inodes.py, VIEW_SHIFT)
--   guid        16 random bytes; the same for what was sent and received, wherever it is
--   name        1 to 255 bytes, without "/", "@" and control characters. One that begins with "." is
--               raidfs's own and deleted at the next opening. NULL: condemned. It is retained no more,
--               and the row goes when all that it alone had has been dropped
--   epoch       what it holds is what is visible then. Several snapshots may hold one epoch
--   created_ns  when it was taken
--   next_ino    as in state, at that epoch
--   inodes, cells   as in state, at that epoch
--   group_id    16 bytes: the group snapshot that it is this volume's part of; else NULL. Until that is committed, its
--               name is ".group-" and these bytes in hex, and it stays at the next opening if `kept` says that it is
--               prepared
CREATE TABLE snapshot (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    guid       BLOB NOT NULL,
    name       TEXT UNIQUE,
    epoch      INTEGER NOT NULL,
    created_ns INTEGER NOT NULL,
    note       TEXT NOT NULL,
    next_ino   INTEGER NOT NULL,
    inodes     INTEGER NOT NULL,
    cells      INTEGER NOT NULL,
    group_id   BLOB UNIQUE
);

-- What this volume promised to the others of its group, until they have all been told what became of it.
--   group_id    of the group snapshot, or the number of another work of the whole group
--   kind        "prepared", "decision": of a snapshot. "intent", "verdict": of a deletion or rollback of all.
--               "move-out", "move-in": of a file's move to or from another volume; group_id is the move's number
--               "took-part": no promise: who took part in a snapshot that is committed, as it was promised then
--   value       in a form of the group's own
CREATE TABLE kept (
    group_id BLOB NOT NULL,
    kind     TEXT NOT NULL,
    value    BLOB NOT NULL,
    PRIMARY KEY (group_id, kind)
) WITHOUT ROWID;

-- Messages that were on their way to this volume when a group snapshot was taken, in their order.
--   peer        the volume that sent it
CREATE TABLE recorded (
    group_id BLOB NOT NULL,
    number   INTEGER NOT NULL,
    peer     TEXT NOT NULL,
    message  BLOB NOT NULL,
    PRIMARY KEY (group_id, number)
) WITHOUT ROWID;

-- Why a snapshot must not be deleted: tags that users gave.
CREATE TABLE hold (
    snapshot   INTEGER NOT NULL,
    tag        TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    PRIMARY KEY (snapshot, tag)
) WITHOUT ROWID;

-- What belongs to the volume and not to a mount of it, by name; each value in a form of its own.
CREATE TABLE setting (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;

-- Errors counted per member since it joined. Members themselves are in the labels.
--   lost_at     what was durable when it was lost: it has at least that; NULL: it isn't lost
CREATE TABLE member (
    member          INTEGER PRIMARY KEY,
    read_errors     INTEGER NOT NULL,
    write_errors    INTEGER NOT NULL,
    checksum_errors INTEGER NOT NULL,
    lost_at         INTEGER
);

-- What happened, newest last; the newest 10,000 are kept. events.py says what the kinds mean.
--   number      rises; some may be left out (after a crash)
--   member      -1 when it concerns none
--   text        one line for people
--   details     for programs: a JSON object
CREATE TABLE event (
    number  INTEGER PRIMARY KEY,
    time_ns INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    member  INTEGER NOT NULL,
    text    TEXT NOT NULL,
    details TEXT NOT NULL
);
