//! What became of desktops' starts on golden versions.

use chunk_format::ManifestId;
use serde::{Deserialize, Serialize};
use sqlx::SqliteExecutor;

use super::versions::{SeriesId, VersionRowId};
use super::{DatabaseError, failed, id_bytes, number};

/// What became of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// It came up.
    Good,
    /// It did not.
    Bad,
    /// It did not several times in a row, and the desktop went back to an earlier version.
    Reverted,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Reverted => "reverted",
        }
    }
}

/// A start to be noted.
pub(crate) struct Start<'a> {
    /// The desktop.
    pub(crate) series: SeriesId,
    /// The golden version it started on.
    pub(crate) version: VersionRowId,
    pub(crate) outcome: Outcome,
    pub(crate) machine: &'a str,
    pub(crate) said: Option<&'a str>,
    pub(crate) noted_ms: i64,
}

/// Notes what became of a desktop's latest start on a golden version.
pub(crate) async fn note(executor: impl SqliteExecutor<'_>, start: &Start<'_>) -> Result<(), DatabaseError> {
    sqlx::query(
        "INSERT INTO starts (series_id, version_id, outcome, machine, said, noted_ms) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (series_id, version_id) DO UPDATE SET
             outcome = excluded.outcome, machine = excluded.machine, said = excluded.said, noted_ms = excluded.noted_ms",
    )
    .bind(start.series)
    .bind(start.version)
    .bind(start.outcome.as_str())
    .bind(start.machine)
    .bind(start.said)
    .bind(start.noted_ms)
    .execute(executor)
    .await
    .map(drop)
    .map_err(failed("note a start"))
}

/// How desktops get on with a golden version.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct States {
    pub(crate) version: ManifestId,
    pub(crate) sequence: u64,
    /// Desktops whose newest version stands on it.
    pub(crate) desktops: u64,
    /// Desktops whose latest start on it came up, did not, and made them go back.
    pub(crate) good: u64,
    pub(crate) bad: u64,
    pub(crate) reverted: u64,
    /// What the latest desktop that it did not work for said.
    pub(crate) said: Option<String>,
}

/// How desktops get on with each version of an image that any stand on or started on, newest first.
pub(crate) async fn states(
    executor: impl SqliteExecutor<'_>,
    image: SeriesId,
) -> Result<Vec<States>, DatabaseError> {
    type Row = (Vec<u8>, i64, i64, i64, i64, i64, Option<String>);
    let rows: Vec<Row> = sqlx::query_as(
        "WITH heads AS (
             SELECT base_version_id AS version_id, count(*) AS desktops FROM versions AS head
             WHERE base_version_id IS NOT NULL
               AND NOT EXISTS (SELECT 1 FROM versions AS later
                               WHERE later.series_id = head.series_id AND later.sequence > head.sequence)
             GROUP BY base_version_id
         ), outcomes AS (
             SELECT version_id, sum(outcome = 'good') AS good, sum(outcome = 'bad') AS bad,
                    sum(outcome = 'reverted') AS reverted
             FROM starts GROUP BY version_id
         )
         SELECT manifest, sequence, coalesce(desktops, 0), coalesce(good, 0), coalesce(bad, 0), coalesce(reverted, 0),
                (SELECT said FROM starts WHERE starts.version_id = versions.id AND outcome <> 'good'
                 ORDER BY noted_ms DESC LIMIT 1)
         FROM versions LEFT JOIN heads ON heads.version_id = versions.id
         LEFT JOIN outcomes ON outcomes.version_id = versions.id
         WHERE series_id = ? AND (desktops IS NOT NULL OR good IS NOT NULL) ORDER BY sequence DESC",
    )
    .bind(image)
    .fetch_all(executor)
    .await
    .map_err(failed("count desktops by version"))?;
    rows.into_iter()
        .map(|(id, sequence, desktops, good, bad, reverted, said)| {
            Ok(States {
                version: ManifestId::from_bytes(id_bytes("version id", &id)?),
                sequence: number("sequence", sequence)?,
                desktops: number("count", desktops)?,
                good: number("count", good)?,
                bad: number("count", bad)?,
                reverted: number("count", reverted)?,
                said,
            })
        })
        .collect()
}
