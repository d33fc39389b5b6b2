-- What has ended is forgotten after a time.

create index messages_behind on messages (after) where after is not null and place <> 'ended';

create index entries_expiring on entries (expires_at) where expires_at is not null;
