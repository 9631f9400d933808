// An OpenID provider with the device flow and, if browsers may be sent back somewhere, the authorization code;
// and the auth configuration of a PanDA server, on loopback.
//
//   node oidc_provider.mjs FOLDER_WITH_NODE_MODULES [REDIRECT_URI]      prints "PORT <number>" when it serves
//
// The protocol is all of the npm package oidc-provider; what is added here lets a test play the person in
// front of the browser and change the world:
//   POST /person?code=USER_CODE&name=alice[&refuse=1]    approve or refuse a login
//   POST /world?{idTokenSeconds,deviceSeconds,clockSeconds,client,issuer}=...   change it
//   GET  /world                                          {"grants": {"refresh_token": 1, ...}, ...}
import { createRequire } from 'node:module';
import http from 'node:http';

const require = createRequire(`${process.argv[2]}/x.js`);
const { Provider } = await import(require.resolve('oidc-provider'));

const DEVICE = 'urn:ietf:params:oauth:grant-type:device_code';
const CLIENT = { client_id: 'panda-client', client_secret: 'the-secret-of-panda-client' };
const world = { idTokenSeconds: 864000, deviceSeconds: 60, clockSeconds: 0, client: CLIENT.client_id, issuer: '', grants: {} };

const redirectUri = process.argv[3];

const realNow = Date.now.bind(Date);
Date.now = () => realNow() + world.clockSeconds * 1000;

const server = http.createServer();
await new Promise((done) => server.listen(0, '127.0.0.1', done));
const root = `http://127.0.0.1:${server.address().port}`;
const issuer = `${root}/realm`;

const provider = new Provider(issuer, {
  clients: [{
    ...CLIENT,
    grant_types: [DEVICE, 'refresh_token', ...(redirectUri ? ['authorization_code'] : [])],
    redirect_uris: redirectUri ? [redirectUri] : [],
    response_types: redirectUri ? ['code'] : [],
    token_endpoint_auth_method: 'client_secret_post',
  }],
  scopes: ['openid', 'offline_access', 'email', 'profile'],
  claims: { openid: ['sub'], email: ['email'], profile: ['name', 'preferred_username', 'groups', 'organisation_name'] },
  conformIdTokenClaims: false,
  findAccount: (_context, id) => ({
    accountId: id,
    claims: () => ({
      sub: id,
      name: `${id[0].toUpperCase()}${id.slice(1)} Example`,
      preferred_username: id,
      email: `${id}@example.org`,
      groups: ['Rubin', 'Rubin/production'],
      organisation_name: 'Rubin',
    }),
  }),
  features: {
    deviceFlow: { enabled: true, mask: '****-****' },
    devInteractions: { enabled: false },
    revocation: { enabled: true },
  },
  issueRefreshToken: () => true,
  rotateRefreshToken: true,
  ttl: {
    AccessToken: 600,
    IdToken: () => world.idTokenSeconds,
    DeviceCode: () => world.deviceSeconds,
    RefreshToken: 8640000,
    Grant: 8640000,
  },
  interactions: { url: (_context, interaction) => `/interaction/${interaction.uid}` },
  cookies: { keys: ['only-for-tests'] },
});
provider.on('grant.success', (context) => {
  const kind = context.oidc.params.grant_type;
  world.grants[kind] = (world.grants[kind] ?? 0) + 1;
});
provider.on('server_error', (_context, error) => console.error(error));
const realm = provider.callback();

function say(response, status, value) {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(value));
}

async function playPerson(query, response) {
  const code = (query.get('code') ?? '').replace(/[^A-Za-z]/g, '').toUpperCase();
  const login = await provider.DeviceCode.findByUserCode(code, { ignoreExpiration: true });
  if (!login) return say(response, 404, { error: 'no login with this code' });
  if (query.get('refuse')) {
    Object.assign(login, { error: 'access_denied', errorDescription: 'the person said no' });
    await login.save();
    return say(response, 200, { refused: true });
  }
  const name = query.get('name') ?? 'alice';
  const grant = new provider.Grant({ accountId: name, clientId: login.clientId });
  grant.addOIDCScope(login.params.scope);
  Object.assign(login, {
    accountId: name,
    grantId: await grant.save(),
    scope: login.params.scope,
    authTime: Math.floor(Date.now() / 1000),
    sessionUid: 'session-of-the-test',
  });
  await login.save();
  return say(response, 200, { approved: name });
}

// The page on which a person says who they are, and that PanDA may know.
async function interact(request, response) {
  const { params } = await provider.interactionDetails(request, response);
  if (request.method === 'GET') {
    response.writeHead(200, { 'content-type': 'text/html' });
    return response.end('<!DOCTYPE html><title>Log in</title><form method="post"><input name="name" autofocus>'
      + '<button>Approve</button><button name="refuse" value="1">Refuse</button></form>');
  }
  let body = '';
  for await (const piece of request) body += piece;
  const form = new URLSearchParams(body);
  if (form.get('refuse')) return provider.interactionFinished(request, response, { error: 'access_denied' });
  const grant = new provider.Grant({ accountId: form.get('name'), clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  const consent = { grantId: await grant.save() };
  return provider.interactionFinished(request, response, { login: { accountId: form.get('name') }, consent });
}

function changeWorld(query, response) {
  for (const [key, value] of query) world[key] = typeof world[key] === 'number' ? Number(value) : value;
  return say(response, 200, world);
}

server.on('request', (request, response) => {
  const url = new URL(request.url, root);
  if (url.pathname.startsWith('/realm')) {
    request.originalUrl = request.url;
    request.url = request.url.slice('/realm'.length) || '/';
    return realm(request, response);
  }
  if (url.pathname.startsWith('/interaction/')) return interact(request, response);
  if (url.pathname === '/auth/Rubin_auth_config.json') {
    return say(response, 200, {
      ...CLIENT,
      client_id: world.client,
      audience: 'https://iam.example.org/panda',
      oidc_config_url: `${world.issuer || issuer}/.well-known/openid-configuration`,
      vo: 'Rubin',
    });
  }
  if (url.pathname === '/person') return playPerson(url.searchParams, response);
  if (url.pathname === '/world') return changeWorld(url.searchParams, response);
  return say(response, 404, { error: `nothing at ${url.pathname}` });
});
console.log(`PORT ${server.address().port}`);
