// {{name}}: called with the JSON body of each request; what it returns is the reply.

export const handler = async (event, context) => {
  // An empty body is null. What is printed is in `ol logs {{name}}`.
  const who = event?.name ?? 'world';
  console.log('greeting', who);
  return { message: `Hello, ${who}!` };
};
