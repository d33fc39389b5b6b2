-- Revoked messages that an owner holds; entries of which there may be many, each with an end.

alter table messages add column revoked text;

create index entries_expiring on entries (expires_at) where expires_at is not null;
