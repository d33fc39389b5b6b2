-- Every statement of the SQLite storage, by name. {rows} stands for as many row values as a call brings,
-- {first} and {queues} for sub-selects, {record} for columns, {has_rules} for whether any message may not run.
-- `queries.py` fills them in and keeps the texts.

-- name: put
-- One statement for a chunk of messages: executemany lets go of the GIL for every row.
insert into messages (
    id, name, body, queue, priority, content_type, compression, signature, checksum, headers, origin, reply_to,
    retries, sent_at, visible_at, expires_at, ignore_result, after, waits_for, group_id, position, leads, place, hold
) values {rows}
on conflict (id) do nothing;

-- name: hand
-- A put straight into the hands of an owner that sleeps.
insert into messages (
    id, name, body, queue, priority, content_type, compression, signature, checksum, headers, origin, reply_to,
    retries, sent_at, visible_at, expires_at, ignore_result, after, waits_for, group_id, position, leads, place, hold
) values {rows}
on conflict (id) do nothing
returning seq, token, {has_rules};

-- name: has_rules
-- {has_rules}: asked once a statement, one index seek. The only thing that a store without rules pays.
exists (select 1 from entries where key >= 'revoked:' and key < 'revoked;')

-- name: rules
-- Which of these rules are there.
select key from entries where key in (select value from json_each(?)) and (expires_at is null or expires_at > ?);

-- name: twin
-- Is the message with this id the one that is being put?
select name = ? and checksum = ? and body = ? from messages where id = ?;

-- name: promote
-- Due messages become ready, in bounded steps, so that a claim never pays for a million of them.
update messages set place = 'ready'
where seq in (select seq from messages where place = 'waiting' and visible_at <= ? order by visible_at limit 500)
returning queue;

-- name: claim
update messages set place = 'held', hold = ?, token = token + 1
where seq in ({first})
returning seq, token, redeliveries,
    id, name, body, queue, priority, content_type, compression, signature, checksum, headers, origin, reply_to,
    retries, sent_at, visible_at, expires_at, ignore_result, after, waits_for, group_id, position, leads, {has_rules};

-- name: first_of_one
-- {first} where one queue is served: ordered by its index, so it stops after as many rows as are wanted.
select seq from messages where place = 'ready' and queue = ? order by priority, seq limit ?;

-- name: first_of_all
-- {first} where several are: the first of each, and of those the first.
select seq from ({queues}) order by priority, seq limit ?;

-- name: first_of_each
-- One of {queues}.
select * from (select seq, priority from messages where place = 'ready' and queue = ? order by priority, seq limit ?);

-- name: candidates_of_one
-- The next messages of one queue, where some may have to wait for their turn.
select priority, seq, name, hold, queue from messages where place = 'ready' and queue = ? order by priority, seq limit ?;

-- name: candidates_of_all
select * from ({queues}) order by priority, seq limit ?;

-- name: candidates_of_each
-- One of {queues}.
select * from (
    select priority, seq, name, hold, queue from messages where place = 'ready' and queue = ? order by priority, seq limit ?
);

-- name: first_held
-- Of those that wait under this key, the one whose turn is next.
select priority, seq, name, hold, queue from messages where place = 'held' and hold = ? order by priority, seq limit 1;

-- name: chosen
-- {first} where it was decided by hand.
select value from json_each(?);

-- name: park
-- Ready messages wait under a key from now on.
update messages set place = 'held', hold = ? where seq in (select value from json_each(?)) and place = 'ready';

-- name: park_one
-- A claimed one does; it was not run. The claim is stale from now on, whatever else is still said of it.
update messages set place = 'held', hold = ?, token = token + 1
where seq = ? and token = ? and place = 'held' and revoked is null;

-- name: mark
-- Messages wait under this key; says whether that is news.
insert into entries (key, value) values (?, '') on conflict do nothing returning key;

-- name: free
-- They wait no longer, in bounded steps.
update messages set place = 'ready', hold = null
where seq in (select seq from messages where place = 'held' and hold = ? order by priority, seq limit ?)
returning queue;

-- name: settle
-- Attempts that ended; one without a state (Ignore) leaves state and result as they are. Fenced: a claim that was given to somebody else since, or has ended, matches nothing.
-- The columns of a VALUES have no names but these.
update messages set
    place = 'ended', hold = null, state = coalesce(o.column3, state),
    result = iif(o.column3 is null, result, o.column4), result_type = iif(o.column3 is null, result_type, o.column5),
    result_checksum = iif(o.column3 is null, result_checksum, o.column6),
    traceback = iif(o.column3 is null, traceback, o.column7),
    children = o.column8, worker = coalesce(o.column9, worker), ended_at = o.column10
from (values {rows}) as o
where messages.seq = o.column1 and messages.token = o.column2 and messages.place = 'held'
returning messages.seq, messages.token;

-- name: settle_one
-- The same for one that ended with a state, answering with its record.
update messages set
    place = 'ended', hold = null, state = ?, result = ?, result_type = ?, result_checksum = ?, traceback = ?,
    children = ?, worker = coalesce(?, worker), ended_at = ?
where seq = ? and token = ? and place = 'held'
returning {record};

-- name: charge
-- An end that was a death; apart from `settle`, because a column there would cost every success 2 %.
update messages set redeliveries = redeliveries + ? where seq = ?;

-- name: give_back
-- An attempt that did not happen, or may happen again: the same place in the order. One that was due by a clock
-- that has been set back since waits once more.
update messages set
    place = iif(visible_at > ?, 'waiting', 'ready'), hold = null, redeliveries = redeliveries + ?
where seq = ? and token = ? and place = 'held' and revoked is null
returning queue, place, visible_at;

-- name: again
-- A retry: the same id, the next attempt's body and time.
update messages set
    place = ?, hold = null, state = ?, result = ?, result_type = ?, result_checksum = ?, traceback = ?, worker = ?,
    name = ?, body = ?, queue = ?, priority = ?, content_type = ?, checksum = ?, headers = ?, retries = ?,
    visible_at = ?, expires_at = ?, redeliveries = redeliveries + ?
where seq = ? and token = ? and place = 'held' and revoked is null
returning queue;

-- name: revoked
-- What stands in the way of an attempt that is not to be the last one: it was revoked meanwhile.
select id, group_id, leads, reply_to, revoked from messages
where seq = ? and token = ? and place = 'held' and revoked is not null;

-- name: revoke
-- The end of what no owner has, wherever it waits.
update messages set
    place = 'ended', hold = null, state = ?, result = ?, result_type = ?, result_checksum = ?,
    traceback = coalesce(?, traceback), children = coalesce(?, children), worker = coalesce(?, worker), ended_at = ?
where id = ? and place <> 'ended' and (hold is null or hold not between 'owner:' and 'owner;')
returning seq, token, group_id, leads, reply_to;

-- name: mark_revoked
-- An owner has it: it does not come back from there.
update messages set revoked = ? where id = ? and place = 'held' and hold between 'owner:' and 'owner;';

-- name: progress
-- Those who wait for an end that came: one less to wait for.
update messages set waits_for = waits_for - 1
where place = 'held' and hold = ?
returning seq, waits_for;

-- name: release
-- Nothing left to wait for. Times below 0 are so many seconds from now on.
update messages set
    place = iif(visible_at < 0 or visible_at > :now, 'waiting', 'ready'), hold = null,
    visible_at = iif(visible_at < 0, :now - visible_at, visible_at),
    expires_at = iif(expires_at < 0, :now - expires_at, expires_at)
where seq = :seq
returning queue, place, visible_at;

-- name: fail_followers
-- Those who wait for an end that went wrong, end the same way; 64 is SHOWS_CAUSE.
update messages set
    place = 'ended', hold = null, state = 'FAILURE', result = iif(leads & 64, ?, ?),
    result_type = iif(leads & 64, ?, ?), result_checksum = iif(leads & 64, ?, ?), traceback = iif(leads & 64, ?, ?),
    ended_at = ?
where place = 'held' and hold = ?
returning id, group_id, leads, reply_to;

-- name: drop
-- It waited for what will not come.
delete from messages where seq = ?;

-- name: update_claimed
update messages set state = ?, result = ?, result_type = ?, result_checksum = ?, worker = coalesce(?, worker)
where seq = ? and token = ? and place = 'held'
returning reply_to;

-- name: tell
-- A state that is no end is told in an entry of its own, behind those of the same task before it.
insert into entries (key, value, expires_at)
select 'state:' || :id || ':' || printf('%010d', 1 + coalesce((
    select cast(substr(key, -10) as integer) from entries
    where key > 'state:' || :id || ':' and key < 'state:' || :id || ';' and length(key) = length(:id) + 17
    order by key desc limit 1), 0)), :text, :until
returning cast(substr(key, -10) as integer);

-- name: untell
-- A ';' comes next after ':'; the length leaves out tasks whose ids begin like this one.
delete from entries where key in (
    select entries.key from json_each(?) as told, entries
    where entries.key > 'state:' || told.value || ':' and entries.key < 'state:' || told.value || ';'
    and length(entries.key) = length(told.value) + 17);

-- name: update_by_id
update messages set state = ?, result = ?, result_type = ?, result_checksum = ?, worker = coalesce(?, worker)
where id = ? and place <> 'ended'
returning reply_to;

-- name: run_again
-- By hand: what failed or was revoked is as if it was sent now. The token stays, so every earlier claim is stale.
update messages set
    place = ?, hold = ?, state = ?, result = ?, result_type = ?, result_checksum = ?, traceback = ?, children = ?,
    worker = ?, ended_at = null, name = ?, body = ?, queue = ?, priority = ?, content_type = ?, checksum = ?,
    headers = ?, retries = ?, visible_at = ?, expires_at = ?, waits_for = ?, redeliveries = 0, revoked = null
where id = ? and place = 'ended' and state in ('FAILURE', 'REVOKED')
returning queue, reply_to;

-- name: forget
delete from messages where place = 'ended' and id in (select value from json_each(?)) returning id;

-- name: oldest
-- In order of arrival, a step at a time. No index over times of ends: every end would pay for it.
select seq, sent_at, place, state, coalesce(ended_at, sent_at) from messages where seq > ? order by seq limit ?;

-- name: expire
-- What was read as old goes, if it is still so and nobody is fed by it who has not ended.
delete from messages
where seq in (select value from json_each(:seqs)) and place = 'ended'
and coalesce(ended_at, sent_at) < iif(state in ('FAILURE', 'REVOKED'), :failed_before, :ended_before)
and not exists (select 1 from messages as f where f.after = messages.id and f.place <> 'ended')
and not exists (select 1 from messages as f where f.after = messages.group_id and f.place <> 'ended')
returning id;

-- name: columns_of_record
-- {record}, and what a whole one has besides.
id, name, state, place, result, result_type, result_checksum, traceback, children, worker, ended_at, retries,
    queue, group_id, position, ignore_result, hold

-- name: columns_of_whole_record
seq, redeliveries,
    id, name, body, queue, priority, content_type, compression, signature, checksum, headers, origin, reply_to,
    retries, sent_at, visible_at, expires_at, ignore_result, after, waits_for, group_id, position, leads

-- name: record
select {record} from messages where id = ?;

-- name: records
select {record} from messages where id in (select value from json_each(?));

-- name: members
select {record} from messages where group_id = ? order by position;

-- name: members_from
-- The same, a step at a time.
select {record} from messages where group_id = ? and position >= ? order by position, seq limit ?;

-- name: followers
-- Those that wait, or waited, for this end; a step at a time.
select {record} from messages where after = ? and seq >= ? order by seq limit ?;

-- name: failed
-- The dead list, a step at a time. INDEXED BY, because without statistics SQLite would walk through all messages.
select {record} from messages indexed by messages_failed
where place = 'ended' and state = 'FAILURE' and seq > ? order by seq limit ?;

-- name: stamped
-- What has stamps and has not ended, a step at a time. No index: a column in one would cost every put, and this walk
-- holds nobody up. The text is that of `revocation.MARK`.
select {record} from messages
where seq > ? and place <> 'ended' and instr(headers, '"stamps"') order by seq limit ?;

-- name: held
-- What this key holds, a step at a time.
select {record} from messages where place = 'held' and hold = ? order by priority, seq limit ?;

-- name: claims_of
select seq, token, redeliveries,
    id, name, body, queue, priority, content_type, compression, signature, checksum, headers, origin, reply_to,
    retries, sent_at, visible_at, expires_at, ignore_result, after, waits_for, group_id, position, leads
from messages where place = 'held' and hold = ? order by priority, seq;

-- name: holders
-- Every owner that holds something; a ';' comes next after ':'.
select distinct hold from messages where place = 'held' and hold > 'owner:' and hold < 'owner;';

-- name: due
select visible_at from messages where place = 'waiting' order by visible_at limit ?;

-- name: next_due
select min(visible_at) from messages where place = 'waiting';

-- name: counts
select queue, place, count(*) from messages group by queue, place order by queue, place;

-- name: entries
select key, value, expires_at from entries
where key >= ? and key < ? || char(1114111) and (expires_at is null or expires_at > ?) order by key;

-- name: entry
select value from entries where key = ? and (expires_at is null or expires_at > ?);

-- name: write_entry
insert into entries (key, value, expires_at) values (?, ?, ?)
on conflict (key) do update set value = excluded.value, expires_at = excluded.expires_at;

-- name: delete_entry
delete from entries where key = ?;

-- name: drop_expired_entries
delete from entries where key in (select key from entries where expires_at <= ? order by expires_at limit 500);

-- name: is_expired
-- Read before anything is dropped: mostly there is nothing.
select 1 from entries where expires_at <= ? limit 1;
