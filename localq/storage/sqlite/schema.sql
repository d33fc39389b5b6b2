-- The store's tables as they are today. migrations/ leads here from every released schema; a test compares.

-- Everything that was ever asked and not yet forgotten: a message from its put to the end of its result's life.
-- `place` says which of the three partial indexes finds it; see localq/states.py for the picture.
create table messages (
    seq            integer primary key,          -- order of arrival
    id             text    not null,
    name           text    not null,
    body           blob    not null,             -- encoded [args, kwargs]
    queue          text    not null,
    priority       integer not null check (priority between 0 and 255),
    content_type   text    not null,
    compression    text,
    signature      blob,
    checksum       integer not null,             -- of body
    headers        text,                         -- JSON of what differs from the defaults
    origin         text,
    reply_to       text,                         -- whose bell rings at the end
    retries        integer not null,
    sent_at        real    not null,
    visible_at     real,                         -- not before
    expires_at     real,                         -- not after
    ignore_result  integer not null,
    after          text,                         -- waits for the end of this message or group ...
    waits_for      integer not null,             -- ... so many ends are missing
    group_id       text,
    position       integer,                      -- in the group
    leads          integer not null,             -- 1: others wait for id, 2: others wait for group_id
    place          text    not null check (place in ('ready', 'waiting', 'held', 'ended')),
    hold           text,                         -- who or what holds it: owner:<name>, after:<id>
    -- Rises with every claim; only the newest may settle. It begins anywhere, because the seq of a forgotten
    -- message may be given again, and a late outcome must not fit the new one.
    token          integer not null default (random() & 0x7fffffff),
    redeliveries   integer not null default 0,   -- attempts that died
    state          text    not null default 'PENDING',
    result         blob,
    result_type    text,
    result_checksum integer,
    traceback      text,
    children       text,
    worker         text,
    ended_at       real,
    -- Set while an owner has it that may not give it back: how it ends instead of running again, as JSON of result,
    -- content type, checksum and what its group gets.
    revoked        text,
    check ((place = 'held') = (hold is not null)),
    check (place <> 'waiting' or visible_at is not null)
) strict;

create unique index messages_id on messages (id);

-- A claim takes the first rows of this one. Only what can run now is in it (one index over all messages made
-- a claim cost 209 ms behind 50,000 future ones).
create index messages_ready on messages (queue, priority, seq) where place = 'ready';

-- Due messages are promoted from here.
create index messages_waiting on messages (visible_at) where place = 'waiting';

-- What an owner claimed, and what waits for others' ends, by the key that holds it.
create index messages_held on messages (hold, priority, seq) where place = 'held';

-- Members of groups only: a plain message is not in it.
create index messages_members on messages (group_id, position) where group_id is not null;

-- The dead list. A message that ended well is never in it, so it costs success nothing.
create index messages_failed on messages (seq) where place = 'ended' and state = 'FAILURE';

-- Those that are fed by another's result, or were: it is not forgotten before they have ended, and a workflow can be
-- drawn from any of its steps, then too. Only steps of workflows are in it. Not without those that have ended: an end
-- would have to take its own out of it.
create index messages_followers on messages (after) where after is not null;

-- Keys with a value and an expiry: worker registry and whatever else is small and named.
create table entries (
    key        text primary key,
    value      text not null,
    expires_at real
) strict, without rowid;

-- What has expired is dropped at every write of an entry: 50,000 revoked ids made that a walk of 5 ms.
create index entries_expiring on entries (expires_at) where expires_at is not null;
