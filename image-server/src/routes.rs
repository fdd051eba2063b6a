//! The routes, in one table: what is not in it does not exist, and all but `/healthz` need a token.

mod channels;
mod commit;
mod desktops;
mod images;
pub(crate) mod json;
mod leases;
mod missing;
mod objects;
mod packs;
mod profiles;
mod retention;
mod segments;
mod standings;
mod starts;
mod status;
mod versions;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, get, post, put};

use crate::app::App;
use crate::http::error::ApiError;
use crate::http::{api_version, auth, head, linger, log};

/// A path and what answers there.
struct Route {
    path: &'static str,
    methods: MethodRouter<Arc<App>>,
}

/// Every route that needs a token.
fn table() -> Vec<Route> {
    let route = |path, methods| Route { path, methods };
    vec![
        route("/v1/server", get(status::server)),
        route("/v1/data/{kind}/{name}/packs/{object}", get(objects::get).put(packs::put)),
        route("/v1/data/{kind}/{name}/segments/{object}", get(objects::get).put(segments::put)),
        route("/v1/data/{kind}/{name}/locators/{object}", get(objects::get)),
        route("/v1/data/{kind}/{name}/manifests/{object}", get(objects::get)),
        route("/v1/data/{kind}/{name}/profiles/{object}", get(objects::get)),
        route("/v1/data/{kind}/{name}/streams/{object}", get(objects::get).put(profiles::put_stream)),
        route("/v1/missing/{kind}/{name}/chunks", post(missing::chunks)),
        route("/v1/missing/{kind}/{name}/segments", post(missing::segments)),
        route("/v1/images", get(images::list)),
        route("/v1/images/{image}", get(images::get)),
        route("/v1/images/{image}/channels/{channel}", get(channels::get).put(channels::put)),
        route("/v1/images/{image}/states", get(starts::states)),
        route("/v1/images/{image}/versions", get(images::versions).post(commit::image)),
        route("/v1/images/{image}/versions/{version}/profile", put(profiles::put)),
        route("/v1/desktops", get(desktops::list)),
        route("/v1/desktops/{desktop}", get(desktops::get).delete(desktops::remove)),
        route(
            "/v1/desktops/{desktop}/retention",
            get(retention::get).put(retention::put).delete(retention::delete),
        ),
        route("/v1/desktops/{desktop}/standing", put(standings::put)),
        route("/v1/desktops/{desktop}/starts", post(starts::note)),
        route("/v1/desktops/{desktop}/versions", get(desktops::versions).post(commit::desktop)),
        route("/v1/desktops/{desktop}/lease", get(leases::get).put(leases::put).delete(leases::delete)),
        route("/v1/desktops/{desktop}/lease/wanted", post(leases::want)),
        route("/v1/removed/{version}", get(desktops::removed)),
    ]
}

/// All of the interface. Unknown paths and methods stand behind the token too: without one, everything is 401.
pub(crate) fn router(app: Arc<App>) -> Router {
    let with_token = table()
        .into_iter()
        .fold(Router::new(), |router, route| router.route(route.path, route.methods))
        .fallback(|| async { ApiError::no_such("such path") })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .layer(from_fn_with_state(app.clone(), head::check))
        .layer(from_fn_with_state(app.clone(), auth::require_token));
    let health = get(status::health).fallback(|| async { ApiError::MethodNotAllowed });
    Router::new()
        .route("/healthz", health)
        .merge(with_token)
        .layer(from_fn(api_version::check))
        .layer(from_fn(linger::linger))
        .layer(from_fn_with_state(app.counters.clone(), log::log))
        .with_state(app)
}
