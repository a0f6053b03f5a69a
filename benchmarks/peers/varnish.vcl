# Varnish answering from its cache: no credential, no limit, no log.
vcl 4.1;
backend default { .host = "127.0.0.1"; .port = "@ORIGIN@"; }
sub vcl_recv { unset req.http.Cookie; return (hash); }
sub vcl_backend_response { unset beresp.http.Cache-Control; unset beresp.http.Vary; set beresp.ttl = 1h; }
